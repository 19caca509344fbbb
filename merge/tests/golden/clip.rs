//! CLIP's and SigLIP's checkpoints in every spelling and container, the way from one spelling to the other, and position
//! tables.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fixtures::{Case, Raw};
use merge::convert::{ClipTarget, Conversion, Resize, Spelling};
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{self, Clip, ClipConfig, ClipSizes, ClipSpec, TowerSizes, clip};
use merge::progress::Silent;
use merge::{Checkpoint, Role};

use crate::clip::{converted, opened, values, write};

fixtures::golden_tests! {
    package: "merge", set: "clip",
    checkpoints_of_every_spelling_and_container_hold_the_same_model: "load" => load,
    keys_of_one_library_become_those_of_the_other_and_back: "convert_keys" => convert_keys,
    position_tables_are_resampled_as_open_clip_does: "pos_embed" => resample,
}

/// The largest change by rounding to f16 of numbers too small for its full precision: half of their step.
const HALF_STEP: f64 = 1.0 / (1 << 25) as f64;

/// Every tensor as merges read it, against the same of the model that the case names, or of the file itself read plainly.
fn load(case: &Case) {
    let path = case.file("input");
    let file = opened(&path);
    let layout = layouts::detect(&file).expect("a layout");
    assert!(layout.name().starts_with("clip/"), "{}", layout.name());
    let ignored = &case["params"]["ignore"];
    for (key, _) in file.tensors() {
        match layout.role(key).expect("a known key") {
            Role::Shared(_) => {}
            Role::Derived => {
                let mut listed = ignored.as_array().expect("a list").iter();
                assert!(listed.any(|name| name == key), "{key}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    if let Some(container) = case.param("container") {
        assert_eq!(file.info().root, container);
    }
    let found = Clip::read(&file).expect("it reads").expect("a CLIP");
    if let Some(is_wrapped) = case["params"]["module_prefix"].as_bool() {
        assert_eq!(found.spelling().is_wrapped, is_wrapped);
    }
    if let Some(prefix) = case.param("text_prefix") {
        assert_eq!(found.spelling().is_custom_text, prefix == "text.");
    }
    if case.file_if_any("config").is_some() {
        let config = ClipConfig::of_hugging_face(&case.json("config"), None);
        assert_eq!(found.config(&file).expect("read").facts, config.facts);
        let heads = |stack: &str| layout.dimensions().stack(stack).and_then(|of| of.n_heads);
        assert_eq!(heads("image"), config.image_heads);
        assert_eq!(heads("text"), config.text_heads);
    }
    let (view, _) = clip::apart(Arc::new(file)).expect("a view");
    if let Some(names) = ignored.as_array() {
        for name in names {
            let name = fixtures::text(name);
            assert!(view.get(name).is_none(), "{name}");
            let mut notes = view.notes().iter();
            assert!(notes.any(|note| note.contains(name)), "{name}");
        }
    }
    let other = case.file_if_any("same_as").unwrap_or(path);
    let (other, _) = clip::apart(Arc::new(opened(&other))).expect("a view");
    let rtol = case.tolerance("", "rtol");
    let atol = case.tolerance("", "atol");
    let atol = match case.param("dtype") {
        Some("f16") => atol + HALF_STEP,
        _ => atol,
    };
    assert_same(&view, &other, rtol, atol);
}

fn assert_same(one: &Checkpoint, other: &Checkpoint, rtol: f64, atol: f64) {
    let names = |of: &Checkpoint| -> Vec<(String, Vec<usize>)> {
        let listed = of.tensors();
        let mut listed: Vec<_> = listed
            .map(|(key, info)| (key.to_owned(), info.shape.clone()))
            .collect();
        listed.sort();
        listed
    };
    assert_eq!(names(one), names(other));
    for (key, _) in one.tensors() {
        let (found, expected) = (values(one, key), values(other, key));
        let difference = fixtures::first_difference(&found, &expected, rtol, atol);
        assert_eq!(difference, None, "{key}");
    }
}

/// Names, shapes, dtypes and bytes.
fn convert_keys(case: &Case) {
    let [one, other] = [case.file("input"), case.file("expected")];
    assert_listed(&converted(&one, ClipTarget::OpenClip), &other);
    if case["params"]["both_ways"].as_bool() == Some(true) {
        assert_listed(&converted(&other, ClipTarget::HuggingFace), &one);
    }
    // The map itself: which rows of which tensor hold a key.
    let map = case.set().json(case.param("keymap").expect("a map"));
    let section = &map[case.param("section").expect("a section")];
    let (hf, open_clip) = (fixtures::tensors(&one), fixtures::tensors(&other));
    for row in fixtures::list(section) {
        let of = |name: &str| fixtures::text(&row[name]).to_owned();
        assert!(hf.contains_key(&of("hf")), "{row}");
        assert!(open_clip.contains_key(&of("open_clip")), "{row}");
    }
}

/// The checkpoint has the tensors of the file and no others, bit for bit.
fn assert_listed(found: &Checkpoint, path: &Path) {
    let (found, expected) = (listing(found), described(path));
    let names = |of: &Listing| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));
    for (key, tensor) in &expected {
        assert_eq!(&found[key], tensor, "{key}");
    }
}

type Listing = BTreeMap<String, (Vec<usize>, String)>;

fn listing(checkpoint: &Checkpoint) -> Listing {
    let tensors = checkpoint.tensors();
    tensors
        .map(|(key, info)| {
            let bytes = checkpoint.read_all(key).expect("it reads");
            let described = (info.shape.clone(), fixtures::sha256_of(&bytes));
            (key.to_owned(), described)
        })
        .collect()
}

fn described(path: &Path) -> Listing {
    let tensors = fixtures::tensors(path).into_iter();
    tensors
        .map(|(key, raw)| (key, (raw.shape.clone(), raw.sha256())))
        .collect()
}

/// A model with the table of the case, brought to the size of the other.
fn resample(case: &Case) {
    let tensors = case.tensors("input");
    let param = |name: &str| case.param(name).expect("a tensor");
    let (source, target) = (&tensors[param("source")], &tensors[param("target")]);
    let width = source.shape[1];
    let tower = TowerSizes {
        n_blocks: 1,
        width,
        n_heads: 1,
        ffn_width: width,
    };
    let grids = [case.count("grid_from"), case.count("grid_to")];
    let patch = 2;
    let spec = ClipSpec {
        sizes: ClipSizes {
            image: tower,
            text: tower,
            patch_size: patch,
            image_size: patch * grids[0].unwrap_or(1),
            vocabulary: 4,
            text_len: case.count("rows_from").unwrap_or(4),
            joint_width: width,
        },
        is_siglip: case.count("extra_tokens") == Some(0),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write(spec, &path);
    let key = match grids[0] {
        Some(_) => "vision_model.embeddings.position_embedding.weight",
        None => "text_model.embeddings.position_embedding.weight",
    };
    let mut all: BTreeMap<String, Raw> = fixtures::tensors(&path);
    assert_eq!(all[key].shape, source.shape);
    all.insert(key.to_owned(), source.clone());
    fixtures::write(&path, &all);
    for to in [ClipTarget::HuggingFace, ClipTarget::OpenClip] {
        let conversion = Conversion {
            spelling: Some(Spelling::Clip(to)),
            image_size: grids[1].map(|grid| grid * patch),
            resize: Some(Resize::BicubicAntialiased),
            text_len: case.count("rows_to"),
            ..Conversion::default()
        };
        let file = Arc::new(opened(&path));
        let layout = layouts::detect(&file).expect("a layout");
        let plan = conversion.plan(file, layout.as_ref()).expect("a plan");
        let resized = in_memory(&plan, &RunOptions::default(), &Silent).expect("it runs");
        let resized = clip::respelled(Arc::new(resized), clip::ClipSpelling::HUGGING_FACE);
        let resized = resized.expect("a view");
        assert_eq!(resized.require(key).expect("the table").shape, target.shape);
        let difference = fixtures::first_difference(
            &values(&resized, key),
            &target.values(),
            case.tolerance("", "rtol"),
            case.tolerance("", "atol"),
        );
        assert_eq!(difference, None);
    }
}
