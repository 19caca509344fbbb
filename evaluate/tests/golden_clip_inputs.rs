//! The inputs of models of either library: pictures brought to size, and texts as tokens, case by case of
//! `fixtures/clip/manifest.json`.

use evaluate::images::{self, ImageInput, Margins, Resize, Rgb, Transform, center, shorter};
use evaluate::models::clip::image_input;
use evaluate::text::{ClipFlavor, Tokenizer, clean_siglip};
use fixtures::{Case, number};
use merge::layouts::{ClipLibrary, ClipResize};
use serde_json::Value;

fixtures::golden_tests! {
    package: "evaluate", set: "clip",
    pictures_are_brought_to_size_as_either_library_does: "preprocess" => preprocess,
    centers_are_cut_out_where_either_library_cuts: "center_crop" => center_crop,
    shorter_sides_have_the_published_longer_ones: "resize_size" => resize_size,
    texts_have_the_tokens_of_either_library: "tokenize" => tokenize,
    texts_are_cleaned_as_open_clip_cleans_them_for_siglip: "clean_text" => clean_text,
}

fn library(case: &Case) -> ClipLibrary {
    match case.param("flavor") {
        Some("hf") => ClipLibrary::HuggingFace,
        Some("open_clip") => ClipLibrary::OpenClip,
        other => panic!("a library {other:?}"),
    }
}

fn colors(case: &Case, name: &str) -> [f32; 3] {
    let list = fixtures::list(&case["params"][name]);
    std::array::from_fn(|channel| number(&list[channel]) as f32)
}

fn preprocess(case: &Case) {
    assert_eq!(case.param("interpolation"), Some("bicubic"));
    let library = library(case);
    let input = match (case.count("squash"), case.count("resize_shortest")) {
        (Some(side), None) => image_input(side, true, Some(ClipResize::Squash), library),
        (None, Some(to)) => ImageInput {
            resize: Resize::Shorter { to },
            ..image_input(
                case.count("crop").expect("a side"),
                false,
                Some(ClipResize::Shortest),
                library,
            )
        },
        other => panic!("sizes {other:?}"),
    };
    let input = input.normalized_by([colors(case, "mean"), colors(case, "std")]);
    let bytes = std::fs::read(case.file("input")).expect("a picture");
    let picture = images::decode(&bytes).expect("a picture");
    let found = Transform::new(&input).apply(&picture);
    let expected = &case.tensors("expected")[case.text("key")];
    let expected = expected.values();
    assert_eq!(found.len(), expected.len());
    let far = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs();
    let atol = case.tolerance("", "atol");
    let most = found.iter().zip(&expected).map(far).fold(0.0, f64::max);
    assert!(most <= atol, "{most} > {atol}");
    // Of the rounding of single values.
    let n_exact = found
        .iter()
        .zip(&expected)
        .filter(|pair| far(*pair) < 1e-5)
        .count();
    let least = case.tolerance("", "exact_fraction");
    let share = n_exact as f64 / found.len() as f64;
    assert!(share >= least, "{share} of the values are equal");
}

fn size(row: &Value, name: &str) -> usize {
    row[name].as_u64().expect("a size") as usize
}

/// A picture whose red is 1 + the column and whose green is 1 + the row, as far as bytes go.
fn places(width: usize, height: usize) -> Rgb {
    let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels = rows.flat_map(|(x, y)| [(x % 255 + 1) as u8, (y % 255 + 1) as u8, 0]);
    Rgb {
        width,
        height,
        pixels: pixels.collect(),
        alpha: None,
    }
}

fn center_crop(case: &Case) {
    let rows = case.json("expected");
    for row in fixtures::list(&rows) {
        let picture = places(size(row, "width"), size(row, "height"));
        let side = size(row, "crop");
        for (name, margins) in [("hf", Margins::LastLarger), ("torchvision", Margins::Even)] {
            let found = center(&picture, side, margins);
            let expected = &row[name];
            let (left, top) = (size(expected, "padded_left"), size(expected, "padded_top"));
            let pixel = found.pixel(left, top).expect("a pixel");
            let of = |name: &str| (size(expected, name) % 255 + 1) as u8;
            assert_eq!(pixel[..2], [of("left"), of("top")], "{row} {name}");
            // Before it nothing but black.
            if left > 0 {
                assert_eq!(found.pixel(left - 1, top), Some([0, 0, 0]), "{row} {name}");
            }
            if top > 0 {
                assert_eq!(found.pixel(left, top - 1), Some([0, 0, 0]), "{row} {name}");
            }
        }
    }
}

fn resize_size(case: &Case) {
    let rows = case.json("expected");
    for row in fixtures::list(&rows) {
        let from = (size(row, "width"), size(row, "height"));
        let (width, height) = shorter(from, size(row, "shortest"));
        for name in ["hf_height_width", "torchvision_height_width"] {
            let expected = fixtures::integers(&row[name]);
            assert_eq!(expected, [height as i64, width as i64], "{row}");
        }
    }
}

fn tokenize(case: &Case) {
    let flavor = case.param("flavor").expect("a library");
    let (flavor, own) = match flavor.split(' ').next() {
        Some("open_clip") => (ClipFlavor::OpenClip, None),
        Some("hf_fast") => (ClipFlavor::HuggingFace, Some("hf_fast_ids")),
        Some("hf_slow") => (ClipFlavor::HuggingFaceSlow, Some("hf_slow_ids")),
        other => panic!("a library {other:?}"),
    };
    let tokenizer = Tokenizer::clip(&case.file("input"), flavor).expect("a tokenizer");
    let len = case.count("context_length").expect("a length");
    let id = |name: &str| case.count(name).map(|id| id as u32);
    assert_eq!(Some(tokenizer.padding_id()), id("pad"));
    let [first, last] = tokenizer.special().borders;
    assert_eq!(id("start").unwrap_or(first), first);
    assert_eq!(id("end").unwrap_or(last), last);
    let rows = case.json("expected");
    let mut faults = Vec::new();
    for row in fixtures::list(&rows) {
        let text = fixtures::text(&row["text"]);
        let expected = match own.map(|own| &row[own]) {
            Some(ids) if !ids.is_null() => fixtures::integers(ids),
            _ => fixtures::integers(&row["ids"]),
        };
        let found = tokenizer.encode(text, len).expect("tokens");
        let ids = found.ids[..found.n_tokens].iter().map(|&id| i64::from(id));
        let ids: Vec<i64> = ids.collect();
        if ids != expected {
            faults.push(format!("{text:?}: {ids:?}, expected {expected:?}"));
        }
        assert!(
            found.ids[found.n_tokens..]
                .iter()
                .all(|id| Some(*id) == id_of(case))
        );
        if flavor == ClipFlavor::OpenClip {
            let length = tokenizer.count(text).expect("tokens");
            assert_eq!(length, size(row, "untruncated_length"), "{text:?}");
            // A text that does not fit is shown in part.
            let (found, expected) = (flavor.clean(text), fixtures::text(&row["cleaned"]));
            let expected = expected.to_lowercase();
            assert!(
                found == expected || length > len && found.starts_with(&expected),
                "{found:?}"
            );
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn id_of(case: &Case) -> Option<u32> {
    case.count("pad").map(|id| id as u32)
}

fn clean_text(case: &Case) {
    let rows = case.json("expected");
    for row in fixtures::list(&rows) {
        let text = fixtures::text(&row["text"]);
        assert_eq!(
            clean_siglip(text),
            fixtures::text(&row["canonical"]),
            "{text:?}"
        );
    }
}
