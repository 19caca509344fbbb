//! Another model's tokenizer in a model, as a user asks for it.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{Said, ok, run};

const WIDTH: usize = 6;
const WIDTH_OF_DONOR: usize = 8;
/// Rows of the model: one more than tokens.
const ROWS: usize = 16;
/// Tokens of the donor.
const N_TOKENS: usize = 13;

/// A number for each element of a tensor, with all bits of a float in use: the generator SplitMix64.
fn values(name: &str, n: usize) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(7, |sum: u64, b| sum * 31 % 9973 + u64::from(b));
    let drawn = |i: usize| {
        let z = (seed * 1000 + i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(drawn).collect()
}

type Tensors = Vec<(&'static str, Vec<usize>, Vec<f32>)>;

fn write(folder: &Path, tensors: &Tensors, files: &[(&str, Value)]) {
    std::fs::create_dir_all(folder).expect("a folder");
    let bytes: Vec<Vec<u8>> = (tensors.iter())
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (
            *name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"),
        )
    });
    let file = safetensors::serialize(views, None).expect("a file");
    std::fs::write(folder.join("model.safetensors"), file).expect("written");
    for (name, json) in files {
        std::fs::write(folder.join(name), json.to_string()).expect("written");
    }
}

fn special(id: usize, text: &str) -> Value {
    json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
}

/// Tokens spelled byte by byte.
fn tokenizer_of_model() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(0, "<|end|>")],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "merges": [], "vocab": {
            "<|end|>": 0, "a": 1, "b": 2, "Ġcat": 3, "Ġsat": 4, "Ġmat": 5, "Ċ": 6, "Ġdog": 7, "Ġthe": 8, "c": 9, "t": 10, "Ġ": 11,
            "i": 12, "n": 13, "g": 14,
        } },
    })
}

/// Pieces of words.
fn tokenizer_of_donor() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        "pre_tokenizer": null, "decoder": { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        "model": { "type": "BPE", "merges": [], "byte_fallback": true, "unk_token": "<unk>", "vocab": {
            "<unk>": 0, "<s>": 1, "</s>": 2, "▁cat": 3, "▁sat": 4, "▁mat": 5, "<0x0A>": 6, "▁dog": 7, "▁catting": 8, "a": 9, "b": 10,
            "▁the": 11, "ting": 12,
        } },
    })
}

/// The donor's rows: those of shared tokens at right angles, the others made of them.
fn rows_of_donor() -> Vec<f32> {
    let mut rows = vec![[0.0; WIDTH_OF_DONOR]; N_TOKENS + 3];
    for (direction, token) in [3, 4, 5, 7, 9, 10, 11, 2].into_iter().enumerate() {
        rows[token][direction] = 1.0 + direction as f32;
    }
    let sum = |parts: &[(usize, f32)]| {
        let value = |i: usize| {
            parts
                .iter()
                .map(|(row, factor)| factor * rows[*row][i])
                .sum()
        };
        std::array::from_fn(value)
    };
    let (catting, line, ting) = (
        sum(&[(3, 2.0), (4, -1.0)]),
        sum(&[(11, 3.0)]),
        sum(&[(7, 0.5), (9, 1.0), (10, 1.0)]),
    );
    (rows[8], rows[6], rows[12]) = (catting, line, ting);
    rows.concat()
}

fn config_of_model() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "vocab_size": ROWS, "bos_token_id": 0,
        "eos_token_id": 0, "torch_dtype": "float32", "tie_word_embeddings": false,
    })
}

fn tensors_of_model() -> Tensors {
    let of = |name: &'static str, shape: Vec<usize>| {
        let n = shape.iter().product();
        (name, shape, values(name, n))
    };
    vec![
        of("model.embed_tokens.weight", vec![ROWS, WIDTH]),
        of("model.layers.0.mlp.up_proj.weight", vec![9, WIDTH]),
        of("lm_head.weight", vec![ROWS, WIDTH]),
    ]
}

fn models() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let files = [
        ("config.json", config_of_model()),
        ("tokenizer.json", tokenizer_of_model()),
        (
            "tokenizer_config.json",
            json!({ "bos_token": "<|end|>", "eos_token": "<|end|>" }),
        ),
        ("vocab.json", json!({ "of the model": 0 })),
        ("preprocessor_config.json", json!({ "of": "the model" })),
        (
            "generation_config.json",
            json!({ "eos_token_id": [0], "temperature": 0.5, "suppress_tokens": [12], "begin_suppress_tokens": [3] }),
        ),
    ];
    write(&folder.path().join("model"), &tensors_of_model(), &files);
    donor(&folder, tokenizer_of_donor());
    folder
}

fn donor(folder: &TempDir, tokenizer: Value) {
    let rows = rows_of_donor();
    let shape = vec![N_TOKENS + 3, WIDTH_OF_DONOR];
    let tensors = vec![
        ("model.embed_tokens.weight", shape.clone(), rows.clone()),
        ("lm_head.weight", shape, rows),
    ];
    let files = [
        (
            "config.json",
            json!({ "bos_token_id": 1, "eos_token_id": 2, "vocab_size": N_TOKENS + 3 }),
        ),
        ("tokenizer.json", tokenizer),
        (
            "tokenizer_config.json",
            json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" }, "unk_token": "<unk>" }),
        ),
    ];
    write(&folder.path().join("donor"), &tensors, &files);
}

fn transplant(folder: &TempDir, more: &str) -> Said {
    run(
        &format!("transplant {{}}/model {{}}/donor {{}}/out --json {more}"),
        folder,
    )
}

fn read(folder: &TempDir, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(folder.path().join("out/model.safetensors")).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("a header");
    let tensor = file.tensor(name).expect(name);
    let values = tensor.data().chunks(4);
    let values = values.map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
    (tensor.shape().to_vec(), values.collect())
}

fn json_of(folder: &TempDir, name: &str) -> Value {
    let text = std::fs::read_to_string(folder.path().join("out").join(name)).expect(name);
    serde_json::from_str(&text).expect("JSON")
}

/// A combination of rows of a table of the model.
fn sum(name: &str, parts: &[(usize, f64)]) -> Vec<f64> {
    let own = values(name, ROWS * WIDTH);
    let value = |i: usize| {
        let parts = parts.iter();
        parts
            .map(|(row, factor)| factor * f64::from(own[row * WIDTH + i]))
            .sum()
    };
    (0..WIDTH).map(value).collect()
}

fn mean(name: &str) -> Vec<f64> {
    let all: Vec<(usize, f64)> = (0..ROWS).map(|row| (row, 1.0 / ROWS as f64)).collect();
    sum(name, &all)
}

fn assert_row(table: &[f32], row: usize, expected: &[f64]) {
    for (value, expected) in table[row * WIDTH..][..WIDTH].iter().zip(expected) {
        assert!(
            (f64::from(*value) - expected).abs() < 1e-6,
            "row {row}: {value}, not {expected}"
        );
    }
}

/// The model's row for each of the donor's tokens that the model has.
const COPIED: [(usize, usize); 9] = [
    (1, 0),
    (2, 0),
    (3, 3),
    (4, 4),
    (5, 5),
    (7, 7),
    (9, 1),
    (10, 2),
    (11, 8),
];

#[test]
fn shared_rows_are_copied_and_the_others_are_the_donors_combinations_of_shared_rows() {
    let folder = models();
    let said = ok(transplant(&folder, "--k 3")).json();
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let (shape, table) = read(&folder, name);
        assert_eq!(shape, [N_TOKENS, WIDTH]);
        let own = values(name, ROWS * WIDTH);
        for (row, of) in COPIED {
            assert_eq!(
                table[row * WIDTH..][..WIDTH],
                own[of * WIDTH..][..WIDTH],
                "{name} {row}"
            );
        }
        assert_row(&table, 8, &sum(name, &[(3, 2.0), (4, -1.0)]));
        assert_row(&table, 6, &sum(name, &[(8, 3.0)]));
        assert_row(&table, 12, &sum(name, &[(7, 0.5), (1, 1.0), (2, 1.0)]));
        // The donor's row of <unk> is zero, and made of nothing.
        assert_row(&table, 0, &mean(name));
    }
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(
        read(&folder, name),
        (vec![9, WIDTH], values(name, 9 * WIDTH))
    );
    let table = &said["transplant"]["tables"][0];
    assert_eq!(table["copied"]["same_bytes"], 7);
    assert_eq!(table["copied"]["special"], 2);
    assert_eq!(table["n_made"], 3);
    assert_eq!(table["n_without_basis"], 1);
    assert_eq!(table["without_basis"][0]["token"], "<unk>");
    assert!(table["donor_error"]["p95"].as_f64().expect("a number") < 1e-6);
    // Rows at right angles make none of each other.
    assert_eq!(table["held_out"]["n_tokens"], 2);
    assert_eq!(said["transplant"]["tables"][1]["kind"], "head");
    let bytes = std::fs::read(folder.path().join("out/model.safetensors")).expect("a file");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    let metadata = header.metadata().as_ref().expect("metadata");
    let written: Value = serde_json::from_str(&metadata["vlmerge.transplant"]).expect("JSON");
    assert_eq!(written, said["transplant"]);
    assert!(
        metadata["vlmerge.recipe"].starts_with("vlmerge transplant model donor --method omp --k 3")
    );
}

#[test]
fn one_thread_and_many_and_products_kept_or_not_give_the_same_rows() {
    let folder = models();
    ok(transplant(&folder, "--k 3 --threads 1"));
    let first = read(&folder, "lm_head.weight");
    ok(transplant(&folder, "--k 3 --threads 4 --force"));
    assert_eq!(read(&folder, "lm_head.weight"), first);
    ok(transplant(&folder, "--k 3 --gram-memory 0 --force"));
    assert_eq!(read(&folder, "lm_head.weight"), first);
}

#[test]
fn the_files_beside_are_the_donors_where_they_are_about_tokens() {
    let folder = models();
    let said = ok(transplant(&folder, "--k 3 --pad-to-multiple-of 8"));
    let config = json_of(&folder, "config.json");
    for (key, expected) in [
        ("vocab_size", json!(16)),
        ("hidden_size", json!(WIDTH)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!(2)),
        ("pad_token_id", Value::Null),
    ] {
        assert_eq!(config[key], expected, "{key}");
    }
    let generation = json_of(&folder, "generation_config.json");
    // `i`, number 12 of the model, is no token of the donor.
    let expected = json!({ "eos_token_id": 2, "temperature": 0.5, "begin_suppress_tokens": [3], "bos_token_id": 1 });
    assert_eq!(generation, expected);
    assert!(
        said.stderr
            .contains("`suppress_tokens` is 12, the token `i`"),
        "{}",
        said.stderr
    );
    assert_eq!(json_of(&folder, "tokenizer.json"), tokenizer_of_donor());
    assert!(!folder.path().join("out/vocab.json").exists());
    assert_eq!(
        json_of(&folder, "preprocessor_config.json")["of"],
        "the model"
    );
    let (shape, table) = read(&folder, "lm_head.weight");
    assert_eq!(shape, [16, WIDTH]);
    (N_TOKENS..16).for_each(|row| assert_row(&table, row, &mean("lm_head.weight")));
    let card = std::fs::read_to_string(folder.path().join("out/README.md")).expect("a card");
    assert!(
        card.contains("| model | converted |") && card.contains("| donor | tokens |"),
        "{card}"
    );
    assert!(
        !card.contains(folder.path().to_str().expect("UTF-8")),
        "{card}"
    );
}

#[test]
fn tied_embeddings_stay_tied_and_an_id_of_the_configuration_goes_with_its_token() {
    let folder = models();
    let mut tensors = tensors_of_model();
    tensors.pop();
    let mut config = config_of_model();
    config["tie_word_embeddings"] = json!(true);
    config["image_token_id"] = json!(7);
    write(
        &folder.path().join("model"),
        &tensors,
        &[("config.json", config.clone())],
    );
    let said = ok(transplant(&folder, "--k 3")).json();
    assert_eq!(
        said["transplant"]["tables"]
            .as_array()
            .expect("tables")
            .len(),
        1
    );
    let written = json_of(&folder, "config.json");
    assert_eq!(
        (&written["tie_word_embeddings"], &written["image_token_id"]),
        (&json!(true), &json!(7))
    );
    // `i` is no token of the donor.
    config["image_token_id"] = json!(12);
    write(
        &folder.path().join("model"),
        &tensors,
        &[("config.json", config)],
    );
    let said = transplant(&folder, "--k 3 --force");
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr
            .contains("`image_token_id` is 12, the token `i`"),
        "{}",
        said.stderr
    );
}

#[test]
fn bytes_beginnings_and_pieces_give_rows_where_they_are_asked_for() {
    let folder = models();
    ok(transplant(
        &folder,
        "--k 3 --byte-match embed --prefix-match lm_head",
    ));
    let (embeddings, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let (_, table) = read(&folder, embeddings);
    assert_row(&table, 6, &sum(embeddings, &[(6, 1.0)]));
    assert_row(&table, 8, &sum(embeddings, &[(3, 2.0), (4, -1.0)]));
    let (_, table) = read(&folder, head);
    assert_row(&table, 6, &sum(head, &[(8, 3.0)]));
    assert_row(&table, 8, &sum(head, &[(3, 1.0)]));
    assert_row(&table, 12, &sum(head, &[(10, 1.0)]));
    // `ting` is t, i, n, g.
    for (method, of_embeddings, of_head) in [
        ("mean", [0.25; 4], [0.25; 4]),
        ("sum", [1.0; 4], [1.0; 4]),
        ("weighted_mean", [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]),
        ("first_last", [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]),
    ] {
        let flags = format!("--method subword --subword-method {method} --force");
        ok(transplant(&folder, &flags));
        for (name, factors) in [(embeddings, of_embeddings), (head, of_head)] {
            let parts: Vec<(usize, f64)> = [10, 12, 13, 14].into_iter().zip(factors).collect();
            let (_, table) = read(&folder, name);
            assert_row(&table, 12, &sum(name, &parts));
            // A new line is one byte of the model's.
            assert_row(&table, 6, &sum(name, &[(6, 1.0)]));
        }
    }
}

#[test]
fn simple_methods_fill_rows_and_noise_and_scale_change_only_what_is_made() {
    let folder = models();
    let name = "lm_head.weight";
    let row = |table: &[f32], row: usize| table[row * WIDTH..][..WIDTH].to_vec();
    ok(transplant(&folder, "--method zero"));
    assert_row(&read(&folder, name).1, 8, &[0.0; WIDTH]);
    let flags = "--method mean --new-vocab-scale -2 --force";
    ok(transplant(&folder, flags));
    let twice: Vec<f64> = mean(name).into_iter().map(|value| -2.0 * value).collect();
    let (_, table) = read(&folder, name);
    assert_row(&table, 8, &twice);
    assert_row(&table, 3, &sum(name, &[(3, 1.0)]));
    for method in ["randn", "john_hewitt", "mean --new-vocab-noise 0.1"] {
        let made = |seed: usize| {
            let flags = format!("--method {method} --seed {seed} --force");
            ok(transplant(&folder, &flags));
            read(&folder, name).1
        };
        let (first, again, other) = (made(1), made(1), made(2));
        assert_eq!(first, again, "{method}");
        assert_ne!(row(&first, 8), row(&other, 8), "{method}");
        assert_eq!(row(&first, 3), row(&other, 3), "{method}");
    }
    ok(transplant(&folder, "--method nearest --force"));
    // 2 cat − sat is √5 from cat, √8 from the row of <s>, which is zero, and √20 from sat.
    assert_row(&read(&folder, name).1, 8, &sum(name, &[(3, 1.0)]));
}

#[test]
fn a_rotation_between_the_models_is_found_from_shared_rows() {
    let folder = models();
    // A donor of the model's width whose rows are the model's, turned by a quarter in each pair of numbers.
    let own = values("model.embed_tokens.weight", ROWS * WIDTH);
    let mut rows = vec![0.0f32; N_TOKENS * WIDTH];
    let turned = |of: usize| -> Vec<f32> {
        let row = &own[of * WIDTH..][..WIDTH];
        row.chunks(2).flat_map(|pair| [-pair[1], pair[0]]).collect()
    };
    // The tokens that are not shared have rows of tokens that the donor lacks.
    let others = [(8, 9), (12, 10), (6, 11), (0, 12)];
    for (row, of) in COPIED.into_iter().chain(others) {
        rows[row * WIDTH..][..WIDTH].copy_from_slice(&turned(of));
    }
    let shape = vec![N_TOKENS, WIDTH];
    let tensors = vec![
        ("model.embed_tokens.weight", shape.clone(), rows.clone()),
        ("lm_head.weight", shape, rows),
    ];
    write(&folder.path().join("donor"), &tensors, &[]);
    ok(transplant(&folder, "--method landmark_pca"));
    let name = "model.embed_tokens.weight";
    let (_, table) = read(&folder, name);
    for (row, of) in others {
        for (value, expected) in table[row * WIDTH..][..WIDTH].iter().zip(&own[of * WIDTH..]) {
            assert!(
                (value - expected).abs() < 1e-5,
                "row {row}: {value}, not {expected}"
            );
        }
    }
}

#[test]
fn a_dry_run_counts_rows_and_writes_nothing() {
    let folder = models();
    let said = ok(transplant(&folder, "--k 3 --dry-run")).json();
    let table = &said["transplant"]["tables"][0];
    assert_eq!(
        (&table["copied"]["same_bytes"], &table["held_out"]),
        (&json!(7), &Value::Null)
    );
    assert!(said["peak_bytes"].as_u64().expect("a number") > 0);
    assert!(!folder.path().join("out").exists());
    let said = ok(run("transplant {}/model {}/donor --k 3 --dry-run", &folder));
    let expected = "`model.embed_tokens.weight`: 13 rows: 9 copied (2 special), 4 made by omp";
    assert!(said.stderr.contains(expected), "{}", said.stderr);
    ok(run(
        "transplant {}/model {}/donor {}/out.safetensors --k 3",
        &folder,
    ));
    assert!(folder.path().join("out.safetensors").is_file());
}

#[test]
fn a_flag_without_effect_and_too_few_shared_tokens_are_refused() {
    let folder = models();
    for (flags, expected) in [
        (
            "--method mean --k 3",
            "--k has no effect on --method mean; it is for omp and common_interpolation",
        ),
        (
            "--method omp --weight-scheme barycentric",
            "--weight-scheme has no effect",
        ),
        (
            "--method subword --cosine-similarity",
            "--cosine-similarity has no effect",
        ),
        (
            "--method zero --subword-method sum",
            "--subword-method has no effect",
        ),
        (
            "--method nearest --gram-memory 1GB",
            "--gram-memory has no effect",
        ),
        ("", "the models share 9 tokens, and `omp` needs 64 of them"),
        (
            "--k 3 --new-vocab-noise -1",
            "new_vocab_noise is -1; it may be a number above 0",
        ),
        (
            "--k 3 --pad-to-multiple-of 9999999",
            "pad_to_multiple_of is 9999999",
        ),
    ] {
        let said = transplant(&folder, flags);
        assert_eq!(said.code, Some(2), "{flags}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{flags}: {}", said.stderr);
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn hostile_tokenizers_are_refused_by_name_and_nothing_is_left() {
    let folder = models();
    let with = |token: &str, id: Value| {
        let mut tokenizer = tokenizer_of_donor();
        tokenizer["model"]["vocab"][token] = id;
        tokenizer
    };
    for (tokenizer, expected) in [
        (with("twice", json!(3)), "both have the id 3"),
        (with("below", json!(-1)), "the id of \"below\" is -1"),
        (with("huge", json!(1_u64 << 40)), "the id of \"huge\""),
        (
            with("far", json!(9_999_999)),
            "14 tokens have ids up to 9999999",
        ),
        (json!({ "model": {} }), "no `model.vocab` in it"),
        (json!([1]), "no `model.vocab` in it"),
    ] {
        donor(&folder, tokenizer);
        let said = transplant(&folder, "--k 3");
        assert!(
            said.stderr.contains(expected),
            "{expected}: {}",
            said.stderr
        );
        assert!(said.code.is_some_and(|code| code > 0));
        assert!(!folder.path().join("out").exists());
    }
    // A token behind the last row has nothing to go by.
    donor(&folder, with("behind", json!(20)));
    let said = ok(transplant(&folder, "--k 3")).json();
    let table = &said["transplant"]["tables"][0];
    assert_eq!(table["n_rows"], 21);
    assert_eq!(table["n_padding"], 7);
    assert_eq!(
        table["without_basis"][0],
        json!({ "id": 20, "token": "behind", "value": null })
    );
    let (_, rows) = read(&folder, "lm_head.weight");
    for row in [15, 20] {
        assert_row(&rows, row, &mean("lm_head.weight"));
    }
    // An id of the donor's configuration behind all rows is no id.
    let config = json!({ "bos_token_id": 1, "eos_token_id": 99 });
    std::fs::write(folder.path().join("donor/config.json"), config.to_string()).expect("written");
    let said = transplant(&folder, "--k 3 --force");
    assert!(
        said.stderr
            .contains("`eos_token_id` is 99, beyond the 21 rows"),
        "{}",
        said.stderr
    );
    std::fs::remove_file(folder.path().join("donor/tokenizer.json")).expect("removed");
    let said = transplant(&folder, "--k 3 --force");
    assert!(
        said.stderr
            .contains("donor: there is no tokenizer.json beside it"),
        "{}",
        said.stderr
    );
}
