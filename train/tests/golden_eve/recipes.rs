//! EVE's shipped recipes, against the settings of the published commands.

use train::augment::FlipGuard;
use train::optim::{Curve, Decay, Warmup};
use train::recipe::{Augmentation, Span, TrainRecipe};

/// The settings of a published command.
struct Command {
    recipe: &'static str,
    objectives: &'static [&'static str],
    image_size: usize,
    batch_size: usize,
    lr: f64,
    lr_mult: f64,
    warmup: f64,
    decay: Decay,
    max_norm: f64,
    /// Random operations on each picture, by how much its colors change, and what keeps it from being mirrored.
    pictures: (usize, f64, FlipGuard),
}

impl Command {
    fn pictures(&self) -> Augmentation {
        let (operations, color, flip_guard) = self.pictures;
        Augmentation::Random {
            operations,
            magnitude: 7.0,
            flip: true,
            least_area: 0.5,
            color,
            flip_guard,
            as_published: false,
        }
    }
}

const LINE: Decay = Decay::Power(1.0);

/// Retrieval on COCO in both sizes, on Flickr30K, VQA and NLVR2: spec of the commands that EVE's README gives.
const COMMANDS: [Command; 5] = [
    Command {
        recipe: "eve_coco_base",
        objectives: &["itc", "itm"],
        image_size: 384,
        batch_size: 256,
        lr: 3e-5,
        lr_mult: 10.0,
        warmup: 0.1,
        decay: LINE,
        max_norm: 1.0,
        pictures: (0, 0.4, FlipGuard::None),
    },
    Command {
        recipe: "eve_coco_large",
        objectives: &["itc", "itm"],
        image_size: 384,
        batch_size: 256,
        lr: 5e-5,
        lr_mult: 10.0,
        warmup: 0.1,
        decay: LINE,
        max_norm: 1.0,
        pictures: (0, 0.4, FlipGuard::None),
    },
    Command {
        recipe: "eve_f30k_base",
        objectives: &["itc", "itm"],
        image_size: 384,
        batch_size: 128,
        lr: 1e-5,
        lr_mult: 5.0,
        warmup: 0.1,
        decay: LINE,
        max_norm: 1.0,
        pictures: (0, 0.4, FlipGuard::None),
    },
    Command {
        recipe: "eve_vqa_base",
        objectives: &["vqa"],
        image_size: 480,
        batch_size: 128,
        lr: 3e-5,
        lr_mult: 10.0,
        warmup: 0.1,
        decay: LINE,
        max_norm: 3.0,
        pictures: (2, 0.0, FlipGuard::AsPublished),
    },
    Command {
        recipe: "eve_nlvr2_base",
        objectives: &["nlvr2"],
        image_size: 384,
        batch_size: 128,
        lr: 3.5e-5,
        lr_mult: 15.0,
        warmup: 0.2,
        decay: Decay::Named(Curve::Cosine),
        max_norm: 3.0,
        pictures: (2, 0.0, FlipGuard::None),
    },
];

fn recipe(name: &str) -> TrainRecipe {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/recipes/train");
    let path = std::path::Path::new(folder).join(format!("{name}.yaml"));
    TrainRecipe::open(&path, &[])
        .expect("a recipe")
        .into_inner()
}

fn names(recipe: &TrainRecipe) -> Vec<&str> {
    recipe
        .objectives
        .iter()
        .map(|of| of.name.as_str())
        .collect()
}

#[test]
fn recipes_of_eve_have_the_resolved_settings_of_the_published_commands() {
    for command in COMMANDS {
        let found = recipe(command.recipe);
        let said = command.recipe;
        assert_eq!(names(&found), command.objectives, "{said}");
        assert_eq!(found.model.image_size, Some(command.image_size), "{said}");
        assert_eq!(found.batch_size, command.batch_size, "{said}");
        assert_eq!(found.length, Span::Epochs(10.0), "{said}");
        let optim = &found.optim;
        assert_eq!(
            [optim.lr, optim.lr_mult],
            [command.lr, command.lr_mult],
            "{said}"
        );
        assert_eq!(optim.end_lr, 0.0, "{said}");
        assert_eq!(
            [optim.beta1, optim.beta2, optim.epsilon],
            [0.9, 0.98, 1e-8],
            "{said}"
        );
        let decays = [optim.weight_decay, optim.head_weight_decay];
        assert_eq!(decays, [0.01, 0.01], "{said}");
        assert_eq!(optim.warmup, Warmup::Share(command.warmup), "{said}");
        assert_eq!(optim.decay, command.decay, "{said}");
        assert_eq!(optim.max_norm, Some(command.max_norm), "{said}");
        assert_eq!([found.drop_path, found.dropout], [0.1, 0.1], "{said}");
        assert_eq!(found.balance, Some(0.001), "{said}");
        assert_eq!(found.seed, 42, "{said}");
        assert_eq!(found.augmentation.in_full(), command.pictures(), "{said}");
        for objective in &found.objectives {
            let pairs = objective.pairs;
            let is_of_pairs = ["itc", "itm"].contains(&objective.name.as_str());
            assert_eq!(pairs.is_some(), is_of_pairs, "{said}");
            if let Some(pairs) = pairs {
                assert!(pairs.by_image && !pairs.as_published, "{said}");
                assert_eq!(pairs.floor, 1e-5, "{said}");
            }
        }
    }
}

#[test]
fn recipes_of_pretraining_name_every_choice_that_is_inferred() {
    for (name, lr, steps) in [
        ("eve_pretrain_base", 5e-4, 480_000),
        ("eve_pretrain_large", 2e-4, 280_000),
    ] {
        let found = recipe(name);
        assert_eq!(names(&found), ["masked_signal"]);
        let signal = found.objectives[0].signal.expect("choices");
        assert_eq!(signal, train::objectives::SignalSettings::default());
        let path = format!(
            "{}/../docs/recipes/train/{name}.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = std::fs::read_to_string(path).expect("a recipe");
        let said = serde_json::to_value(signal).expect("settings");
        for key in said.as_object().expect("settings").keys() {
            assert!(
                text.contains(&format!(" {key}: ")),
                "{name} does not say `{key}`"
            );
        }
        assert_eq!((found.optim.lr, found.length), (lr, Span::Steps(steps)));
        assert_eq!(found.augmentation.in_full(), Augmentation::None.in_full());
        assert_eq!(
            (found.batch_size, found.optim.warmup),
            (2048, Warmup::Steps(10_000))
        );
        assert_eq!((found.optim.weight_decay, found.optim.decay), (0.05, LINE));
        let synth = found.init.synth.expect("fresh weights");
        assert_eq!(synth.image_size, Some(224));
    }
}
