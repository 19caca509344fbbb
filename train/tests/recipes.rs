//! The recipes that are shipped.

use train::recipe::TrainRecipe;

#[test]
fn every_shipped_recipe_reads_and_says_what_it_starts_from() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/recipes/train");
    let mut n = 0;
    for entry in std::fs::read_dir(folder).expect("listed") {
        let path = entry.expect("an entry").path();
        let recipe = TrainRecipe::open(&path, &[]);
        let recipe = recipe.unwrap_or_else(|error| panic!("{error}"));
        recipe.optim.check().expect("settings in range");
        for objective in &recipe.objectives {
            assert!(train::objectives::spec(&objective.name).is_ok());
        }
        n += 1;
    }
    assert_eq!(n, 56);
}

#[test]
fn fresh_weights_take_the_sizes_of_their_family_alone() {
    let parse = |init: &str| {
        let yaml = format!(
            "init: {{ {init} }}\ndata: {{ folder: arrow, train: [{{ dataset: coco, split: train }}] }}\n\
             objectives: [{{ name: retrieval }}]\nlength: {{ steps: 1 }}\nbatch_size: 2\n"
        );
        let recipe = TrainRecipe::parse(&yaml, std::path::Path::new("recipe.yaml"), &[]);
        recipe.map_err(|error| error.to_string())
    };
    let zerovl = parse("synth: { family: zerovl, blocks: 2, width: 64, joint_width: 32 }");
    let zerovl = zerovl.expect("sizes of zerovl");
    // A written recipe is read back.
    let yaml = zerovl.to_yaml().expect("YAML");
    let again = TrainRecipe::parse(&yaml, std::path::Path::new("recipe.yaml"), &[]);
    assert_eq!(again.expect("a recipe").init, zerovl.init);
    for (init, key) in [
        (
            "synth: { family: zerovl, fusion_start: 1 }",
            "`synth.fusion_start`",
        ),
        ("synth: { joint_width: 32 }", "`synth.joint_width`"),
        ("checkpoint: a.pt, load: { only: [image] }", "`init.load`"),
    ] {
        let error = parse(init).expect_err(key);
        assert!(error.contains(key), "{error}");
    }
}
