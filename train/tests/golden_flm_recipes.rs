//! FLM's shipped recipes and groups of variables, against what its published program makes of its commands.

use std::collections::BTreeMap;

use evaluate::models::{Streams, flm};
use fixtures::{Case, list, number, text};
use merge::layouts::{FlmSizes, FlmSpec, FlmTask, TowerSizes};
use merge::synth::{Fresh, Spread};
use serde_json::Value;
use train::augment::PictureStep;
use train::optim::{Decay, OptimSettings, ParamGroups, Rule, Warmup};
use train::recipe::{Augmentation, Span, TrainRecipe};

fixtures::golden_tests! {
    package: "train", set: "flm",
    recipes_have_the_resolved_settings_of_the_published_commands: "config_resolve" => config_resolve,
    variables_are_in_the_published_groups: "param_groups" => param_groups,
}

/// Each run of the set as a shipped recipe and settings on top: the published commands and baselines have
/// none.
const RECIPES: [(&str, &str, &[&str]); 11] = [
    ("pretrain", "flm_pretrain", &[]),
    ("vqa_train", "flm_vqa", &[]),
    ("nlvr2_train", "flm_nlvr2", &[]),
    ("caption_train", "flm_caption_coco", &[]),
    ("irtr_train", "flm_retrieval_f30k", &[]),
    ("mlm", "flm_pretrain_mlm", &[]),
    ("ar", "flm_pretrain_ar", &[]),
    ("flm_itm", "flm_pretrain_itm", &[]),
    (
        "default",
        "flm_pretrain_mlm",
        &[
            "objectives=[{name: random_itm}, {name: mlm}]",
            "optim.warmup=10000",
            "masking.every_place=false",
            "data.tokenizer=google-bert/bert-base-uncased",
        ],
    ),
    // A later configuration overrides an earlier one, and this one leaves out the three streams.
    (
        "randaug_before_clip32",
        "flm_vqa",
        &["augmentation=square", "model.streams=bidirectional"],
    ),
    (
        "clip14_336",
        "flm_pretrain",
        &[
            "model.image_size=336",
            "optim={lr: 1e-5, warmup: 0.1, lr_mult: 5, cross_modal_lr_mult: 5}",
            "length={steps: 100000}",
            "precision=f32",
        ],
    ),
];

fn recipe(name: &str, settings: &[&str]) -> TrainRecipe {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/recipes/train");
    let path = std::path::Path::new(folder).join(format!("{name}.yaml"));
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
    let recipe = TrainRecipe::open(&path, &settings);
    recipe
        .unwrap_or_else(|error| panic!("{error}"))
        .into_inner()
}

/// The objectives of a run and their weights, by our names.
fn objectives(config: &Value) -> BTreeMap<String, f64> {
    let named = config["loss_names"].as_object().expect("losses").iter();
    let named = named.filter(|(_, weight)| number(weight) > 0.0);
    let own = |name: &str| {
        match name {
            "itm" => "random_itm",
            "irtr" => "ranking",
            "ar" if config["get_caption_metric"] == true => "captioning",
            other => other,
        }
        .to_owned()
    };
    named
        .map(|(name, weight)| (own(name), number(weight)))
        .collect()
}

/// How texts are read. The published program refuses at its start to learn from the two directions without
/// the switches of three streams.
fn streams(config: &Value) -> Streams {
    let is_three = config["flm_backbone"] == true || config["enable_flm_aux_lm_loss"] == true;
    match (is_three, config["is_causal_mask"] == true) {
        (true, _) => Streams::Three,
        (false, true) => Streams::Causal,
        (false, false) => Streams::Bidirectional,
    }
}

fn config_resolve(case: &Case) {
    let id = case.param("id").expect("a run");
    let found = RECIPES.iter().find(|(run, ..)| *run == id);
    let Some((_, name, settings)) = found else {
        panic!("no recipe for the run {id}");
    };
    let all = case.set().json(text(&case["expected"][0]));
    let config = &all[id]["resolved"];
    let of = |name: &str| number(&config[name]);
    let recipe = recipe(name, settings);
    let optim = &recipe.optim;
    for (found, name) in [
        (optim.lr, "learning_rate"),
        (optim.lr_mult, "lr_mult_head"),
        (optim.cross_modal_lr_mult, "lr_mult_cross_modal"),
        (optim.weight_decay, "weight_decay"),
        (optim.head_weight_decay, "weight_decay"),
        (optim.end_lr, "end_lr"),
        (recipe.dropout, "drop_rate"),
        (recipe.batch_size as f64, "batch_size"),
        (recipe.seed as f64, "seed"),
    ] {
        assert_eq!(found, of(name), "{id}: {name}");
    }
    assert_eq!(config["optim_type"], "adamw");
    assert_eq!((optim.rule, optim.max_norm), (Rule::AdamW, None));
    let OptimSettings {
        beta1,
        beta2,
        epsilon,
        ..
    } = *optim;
    // Written in the published program, not in its settings.
    assert_eq!((beta1, beta2, epsilon), (0.9, 0.98, 1e-8));
    assert_eq!(optim.decay, Decay::Power(of("decay_power")));
    assert_eq!(
        optim.warmup,
        match config["warmup_steps"].as_u64() {
            Some(steps) => Warmup::Steps(steps),
            None => Warmup::Share(of("warmup_steps")),
        }
    );
    assert_eq!(
        recipe.length,
        match config["max_steps"].as_u64() {
            Some(steps) => Span::Steps(steps),
            None => Span::Epochs(of("max_epoch")),
        }
    );
    if of("per_gpu_batchsize") > 0.0 {
        assert_eq!(
            recipe.per_device_batch,
            Some(of("per_gpu_batchsize") as usize),
            "{id}"
        );
    }
    let precision = if of("precision") == 16.0 {
        "f16"
    } else {
        "f32"
    };
    assert_eq!(recipe.precision, precision, "{id}");
    assert_eq!(
        recipe.model.image_size,
        Some(of("image_size") as usize),
        "{id}"
    );
    assert_eq!(recipe.model.streams, Some(streams(config)), "{id}");
    let found = recipe.objectives.iter().map(|o| (o.name.clone(), o.weight));
    assert_eq!(
        found.collect::<BTreeMap<_, _>>(),
        objectives(config),
        "{id}"
    );
    for objective in &recipe.objectives {
        let language = objective.language.unwrap_or_default();
        if objective.name == "flm" {
            assert_eq!(config["enable_flm_aux_lm_loss"], true);
            assert_eq!(language.forward_weight, of("flm_aux_lm_loss_l2r_weight"));
            assert_eq!(language.reverse_weight, of("flm_aux_lm_loss_r2l_weight"));
            assert_eq!(language.span_corruption, of("span_corruption_rate"));
        }
        if objective.name == "ranking" {
            assert_eq!(recipe.other_texts as f64, of("draw_false_text"));
        }
        if objective.name == "mlm" {
            assert_eq!(recipe.masking.probability, of("mlm_prob"));
            assert_eq!(
                Value::from(recipe.masking.every_place),
                config["whole_word_masking"]
            );
        }
    }
    check_sizes(id, config);
    let side = of("image_size") as usize;
    match text(&config["train_transform_keys"][0]) {
        "clip" => assert_eq!(recipe.augmentation, Augmentation::Square),
        "clip_randaug" => {
            let Augmentation::Listed { steps, .. } = &recipe.augmentation else {
                panic!("{id}: no list of steps");
            };
            let randaug = PictureStep::Randaug {
                operations: 2,
                magnitude: 9.0,
            };
            assert_eq!(steps[0], randaug, "{id}");
            assert_eq!(PictureStep::side(steps), Some(side), "{id}");
        }
        other => panic!("no transform {other}"),
    }
    let tokenizer = text(&config["tokenizer"]).rsplit('/').next();
    assert_eq!(recipe.data.tokenizer.rsplit('/').next(), tokenizer, "{id}");
}

/// Whether a model of the run's sizes can be made: its image tower is that of the CLIP which the run names,
/// without its last block.
fn check_sizes(id: &str, config: &Value) {
    let of = |name: &str| number(&config[name]) as usize;
    let n_blocks = match text(&config["vit"]) {
        "ViT-B/32" | "ViT-B/16" => 11,
        _ => 23,
    };
    let tower = |n_blocks: usize, width: usize, n_heads: usize| TowerSizes {
        n_blocks,
        width,
        n_heads,
        ffn_width: of("mlp_ratio") * width,
    };
    let width = of("input_image_embed_size");
    let published = FlmSpec::published(FlmTask::Pretrain);
    let spec = FlmSpec {
        sizes: FlmSizes {
            image: tower(n_blocks, width, width / 64),
            text: tower(
                of("num_bottom_layer"),
                of("input_text_embed_size"),
                of("num_heads"),
            ),
            cross: tower(of("num_top_layer"), of("hidden_size"), of("num_heads")),
            n_bottom: of("num_reconstructor_bottom_layer"),
            n_top: of("num_reconstructor_top_layer"),
            patch_size: of("patch_size"),
            image_size: of("image_size"),
            vocabulary: of("vocab_size"),
            n_answers: of("vqav2_label_size"),
            ..published.sizes
        },
        ..published
    };
    spec.check().unwrap_or_else(|error| panic!("{id}: {error}"));
    let tensors = spec.tensors(Spread::default());
    let shape = |name: &str| {
        let found = tensors.iter().find(|tensor| tensor.name == name);
        found
            .unwrap_or_else(|| panic!("{id}: no {name}"))
            .info
            .shape
            .clone()
    };
    let side = of("image_size") / of("patch_size");
    let positions = shape("vit_model.visual.positional_embedding");
    assert_eq!(positions, [side * side + 1, width], "{id}");
    let transform = shape("cross_modal_image_transform.weight");
    assert_eq!(transform, [of("hidden_size"), width], "{id}");
    if text(&config["vit"]) == "ViT-B/32" && of("vocab_size") == published.sizes.vocabulary {
        // The sizes of the published model, except for its images.
        let image_size = published.sizes.image_size;
        let sizes = FlmSizes {
            image_size,
            ..spec.sizes
        };
        assert_eq!(sizes, published.sizes, "{id}");
    }
}

fn param_groups(case: &Case) {
    let all = case.set().json(text(&case["expected"][0]));
    let of = &all[case.param("model").expect("a model")];
    let settings = OptimSettings {
        lr: number(&of["learning_rate"]),
        lr_mult: number(&of["lr_mult_head"]),
        cross_modal_lr_mult: number(&of["lr_mult_cross_modal"]),
        ..OptimSettings::default()
    };
    let groups = list(&of["groups"]);
    // Sizes do not decide; the file of some models holds their heads alone.
    let names = groups
        .iter()
        .flat_map(|group| list(&group["names"]))
        .map(text);
    let variables = names.map(|name| (name, &[2_usize, 2][..]));
    let found = ParamGroups::of(variables, &flm::GROUPING, &settings.groups()).expect("groups");
    for expected in groups {
        for name in list(&expected["names"]).iter().map(text) {
            let group = found.group(name).expect("its group");
            assert_eq!(group.decay, number(&expected["weight_decay"]), "{name}");
            assert_eq!(
                group.rate_factor,
                number(&expected["lr_multiplier"]),
                "{name}"
            );
            let lr = settings.lr * group.rate_factor;
            assert!((lr - number(&expected["lr"])).abs() <= 1e-15, "{name}");
        }
        let betas = list(&expected["betas"]);
        assert_eq!(
            [settings.beta1, settings.beta2],
            [number(&betas[0]), number(&betas[1])]
        );
        assert_eq!(settings.epsilon, number(&expected["eps"]));
    }
}
