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
    assert_eq!(n, 33);
}
