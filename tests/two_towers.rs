//! ZeroVL from tables to a run, and the faults that stop it.

use std::collections::BTreeMap;
use std::path::Path;

use fixtures::{Raw, path, tensors, write};
use tempfile::TempDir;

use crate::program::{Said, ok, run};

/// A folder with a tiny model, `toy` in CSV with one picture, and a recipe.
struct Walk(TempDir);

/// A changed checkpoint for measuring and for training: it has lost what it says of its heads.
const CHANGED: [&str; 2] = [
    "{}/changed.safetensors --image-heads 2 --text-heads 2",
    "--set init.checkpoint={}/changed.safetensors --set model.image_heads=2 --set model.text_heads=2",
];

const TABLE: &str = "image,image_id,caption,caption_id\n";

impl Walk {
    fn new() -> Self {
        let walk = Self(TempDir::new().expect("a folder"));
        let synth = "-q synth --family zerovl --blocks 2 --width 32 --attention-heads 2 \
                     --text-attention-heads 2 --image-size 32 --patch-size 8 --joint-width 16 \
                     --text-len 12 --vocabulary 101";
        ok(walk.run(&format!(
            "{synth} --temperature learned {{}}/learned.safetensors"
        )));
        ok(walk.run(&format!("{synth} {{}}/constant.safetensors")));
        let pictures = std::fs::read_dir("fixtures/real/raw/val2014").expect("pictures");
        let picture = pictures.flatten().next().expect("a picture").path();
        for half in ["train", "valid"] {
            let folder = walk.path(&format!("data/toy/{half}"));
            std::fs::create_dir_all(&folder).expect("made");
            std::fs::copy(&picture, folder.join("a.jpg")).expect("copied");
        }
        walk.table("valid", &format!("{TABLE}a.jpg,1,a dog,1\n"));
        walk.table("train", "image,caption\na.jpg,a dog\na.jpg,a cat\n");
        let recipe = format!(
            "init: {{ checkpoint: {folder}/learned.safetensors }}\n\
             data: {{ format: csv, folder: {folder}/data, tokenizer: fixtures/real/vocab.txt, \
             train: [{{ dataset: toy, split: train }}] }}\n\
             augmentation: square\nobjectives: [{{ name: nce }}]\nlength: {{ steps: 2 }}\n\
             batch_size: 2\n",
            folder = walk.0.path().display()
        );
        std::fs::write(walk.path("recipe.yaml"), recipe).expect("written");
        walk
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Said {
        run(line, &self.0)
    }

    fn table(&self, half: &str, text: &str) {
        let path = self.path(&format!("data/toy/{half}_anno.csv"));
        std::fs::write(path, text).expect("written");
    }

    /// A changed copy of the checkpoint with a learned temperature.
    fn changed(&self, change: impl FnOnce(&mut BTreeMap<String, Raw>)) {
        let mut weights = tensors(&self.path("learned.safetensors"));
        change(&mut weights);
        write(&self.path("changed.safetensors"), &weights);
    }

    fn evaluate(&self, more: &str) -> Said {
        self.run(&format!(
            "-q evaluate --task retrieval --data {{}}/data --dataset toy --split valid \
             --tokenizer fixtures/real/vocab.txt --out {{}}/report.json {more}"
        ))
    }

    fn pretrain(&self, more: &str) -> Said {
        self.run(&format!(
            "-q pretrain {{}}/recipe.yaml --out {{}}/run {more}"
        ))
    }

    /// Neither measuring nor training does anything, and both say `expected`.
    fn refuses(&self, evaluate: &str, pretrain: &str, expected: &[&str]) {
        for said in [self.evaluate(evaluate), self.pretrain(pretrain)] {
            self.refused(&said, expected);
        }
    }

    fn refused(&self, said: &Said, expected: &[&str]) {
        assert_ne!(said.code, Some(0), "{}", said.stdout);
        for part in expected {
            assert!(said.stderr.contains(part), "no {part}: {}", said.stderr);
        }
        for left in ["report.json", "run"] {
            assert!(!self.path(left).exists(), "{left} is left: {}", said.stderr);
        }
    }
}

#[test]
fn a_table_is_learned_from_and_measured() {
    let walk = Walk::new();
    ok(walk.pretrain(""));
    let said = ok(walk.evaluate("{}/run/model.safetensors --json"));
    assert_eq!(said.json()["results"][0]["counts"]["images"], 1);
}

#[test]
fn faults_of_a_table_name_file_line_and_field() {
    let walk = Walk::new();
    let measured: [(&str, &[&str]); 8] = [
        ("", &["line 1: names no columns"]),
        (
            "image,image_id,caption\n",
            &["line 1: names no column `caption_id`"],
        ),
        (
            "image,image_id,caption,caption_id\na.jpg,1,a dog, a cat,1\n",
            &["line 2: has 5 fields", "names 4 columns", "double quotes"],
        ),
        (
            "image,image_id,caption,caption_id\na.jpg,1,a dog,1\na.jpg,one,a cat,2\n",
            &["line 3: `image_id` is \"one\""],
        ),
        (
            "image,image_id,caption,caption_id\na.jpg,1,a dog,99999999999999999999\n",
            &["line 2: `caption_id` is", "64 bits"],
        ),
        (
            "image,image_id,caption,caption_id\n../valid/a.jpg,1,a dog,1\n",
            &["line 2: `image` is", "no path within the folder"],
        ),
        (
            "image,image_id,caption,caption_id\na.jpg,1,a dog,1\nb.jpg,2,a cat,2\n",
            &["line 3: `image`: the picture valid/b.jpg"],
        ),
        (
            "image,image_id,caption,caption_id\na.jpg,-1,a dog,1\na.jpg,-7,a dog,1\n",
            &["line 2: `image_id` is below 0, as in all 2 rows"],
        ),
    ];
    for (table, expected) in measured {
        walk.table("valid", table);
        let said = walk.evaluate("{}/learned.safetensors");
        walk.refused(&said, &[&["toy/valid_anno.csv: "], expected].concat());
        let kept = std::fs::read_dir(walk.path("report.json.unfinished"));
        let kept = kept
            .into_iter()
            .flatten()
            .flatten()
            .map(|kept| kept.file_name());
        let kept: Vec<_> = kept.filter(|name| name != "lock").collect();
        assert!(kept.is_empty(), "nothing was computed: {kept:?}");
    }
    let learned: [(&str, &[&str]); 4] = [
        (
            "image\na.jpg\n",
            &["line 1: names no column `caption`; it names: image"],
        ),
        ("image,caption\na.jpg,a dog,1\n", &["line 2: has 3 fields"]),
        (
            "image,caption\na.jpg,a dog\nb.jpg,a cat\n",
            &["line 3: `image`: the picture train/b.jpg"],
        ),
        (
            "image,image,caption\na.jpg,a.jpg,a dog\n",
            &["line 1: names the column `image` twice"],
        ),
    ];
    for (table, expected) in learned {
        walk.table("train", table);
        walk.refused(
            &walk.pretrain(""),
            &[&["toy/train_anno.csv: "], expected].concat(),
        );
    }
    walk.table("train", "image,caption\na.jpg,a dog\n");
    let expected = "the split `train` of toy has 1 example: too few for one batch of 2";
    let debias = "--set data.sampling=debias";
    walk.refused(&walk.pretrain(debias), &["`data.train`", expected]);
}

#[test]
fn a_temperature_that_is_no_single_number_within_its_bounds_is_refused() {
    let walk = Walk::new();
    let key = "loss.temperature";
    walk.changed(|weights| weights.get_mut(key).expect("learned").shape = vec![1]);
    walk.refuses(
        CHANGED[0],
        CHANGED[1],
        &["changed.safetensors: `loss.temperature` is [1]"],
    );
    walk.changed(|weights| {
        let bytes = f32::NAN.to_le_bytes().to_vec();
        weights.get_mut(key).expect("learned").bytes = bytes;
    });
    walk.refuses(
        CHANGED[0],
        CHANGED[1],
        &["changed.safetensors: `loss.temperature` is NaN"],
    );
    walk.refuses(
        "{}/learned.safetensors --temperature 0.1",
        "--set model.temperature=0.1",
        &["learned.safetensors: `loss.temperature` is learned"],
    );
    for given in ["0.7", "0", "-0.02"] {
        walk.refuses(
            &format!("{{}}/constant.safetensors --temperature={given}"),
            &format!(
                "--set init.checkpoint={{}}/constant.safetensors --set model.temperature={given}"
            ),
            &[
                "constant.safetensors: a temperature of",
                "from 0.001 to 0.5",
            ],
        );
    }
}

#[test]
fn a_tower_of_another_width_or_a_vocabulary_of_another_size_is_refused() {
    let walk = Walk::new();
    let reshape = |key: &'static str, shape: [usize; 2]| {
        walk.changed(|weights| weights.get_mut(key).expect(key).shape = shape.to_vec());
    };
    reshape("text_projection.linear.weight", [32, 16]);
    let expected = "`text_projection.linear.weight` is [32, 16], but the tower is 32 wide";
    walk.refuses(CHANGED[0], CHANGED[1], &["changed.safetensors: ", expected]);
    let key = "image_encoder.model.model.blocks.1.mlp.fc1.weight";
    reshape(key, [64, 64]);
    walk.refuses(CHANGED[0], CHANGED[1], &[key, "[64, 64]", "[128, 32]"]);
    let key = "text_encoder.model.model.embeddings.word_embeddings.weight";
    walk.changed(|weights| {
        let words = weights.get_mut(key).expect("words");
        words.shape[0] -= 2;
        words.bytes.truncate(99 * 32 * 4);
    });
    walk.refuses(
        CHANGED[0],
        CHANGED[1],
        &["vocab.txt: has 101 tokens, but the model knows 99"],
    );
}

#[test]
fn counts_that_differ_are_refused_with_both() {
    let walk = Walk::new();
    let mut given = tensors(&path("zerovl/forward/inputs.safetensors"));
    let n = given["image"].shape[0];
    for name in ["input_ids", "attention_mask"] {
        let tensor = given.get_mut(name).expect(name);
        let n_bytes = tensor.bytes.len() / n * (n - 1);
        tensor.bytes.truncate(n_bytes);
        tensor.shape[0] -= 1;
    }
    write(&walk.path("in.safetensors"), &given);
    let model = path("zerovl/ckpt/model.safetensors").display().to_string();
    let said = walk.run(&format!(
        "forward {model} --image-heads 4 --text-heads 3 --inputs {{}}/in.safetensors --loss nce \
         --gradients {{}}/gradients.safetensors --out {{}}/out.safetensors"
    ));
    assert_ne!(said.code, Some(0), "{}", said.stdout);
    let counts = format!("`input_ids` has b = {}, but `image` has {n}", n - 1);
    for part in ["in.safetensors", counts.as_str()] {
        assert!(said.stderr.contains(part), "no {part}: {}", said.stderr);
    }
    for left in ["out", "gradients"] {
        assert!(!walk.path(&format!("{left}.safetensors")).exists());
    }
}

#[test]
fn a_larger_batch_in_parts_of_one_size_takes_more_for_its_features_alone() {
    let walk = Walk::new();
    let rows = "a.jpg,a dog\n".repeat(16384);
    walk.table("train", &format!("image,caption\n{rows}"));
    let dry = |batch: &str| {
        let said = ok(walk.pretrain(&format!(
            "--dry-run --set per_device_batch=128 --set batch_size={batch}"
        )));
        said.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let [small, large] = ["1024", "16384"].map(dry);
    assert_eq!(small.len(), large.len());
    let changed = small
        .iter()
        .zip(&large)
        .filter(|(small, large)| small != large);
    let [(features, of_large), (total, _)] = changed.collect::<Vec<_>>()[..] else {
        panic!("{small:?} {large:?}");
    };
    // Five tensors of rows of 16 numbers of 4 bytes.
    let begin = "features of the batch with their gradients: ";
    assert!(
        features.starts_with(&format!("{begin}0.3 MB")),
        "{features}"
    );
    assert!(
        of_large.starts_with(&format!("{begin}5.2 MB")),
        "{of_large}"
    );
    assert!(total.starts_with("at the peak, all together: "), "{total}");
    assert!(!Path::new(&walk.path("run")).exists());
}
