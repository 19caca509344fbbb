//! Index buffers against those of the published program.

use merge::layouts::Window;
use safetensors::SafeTensors;

use crate::fixture;

/// `im48_p16_t12_i16_vl6` → image, patch, text, text of the table, text of fused passes.
fn window_of(case: &str) -> Window {
    let size = |letters: &str| {
        case.split('_')
            .find_map(|part| part.strip_prefix(letters)?.parse::<usize>().ok())
    };
    let required = |letters| size(letters).expect("a case names its sizes");
    Window {
        side: required("im") / required("p"),
        text_len: required("t"),
        fused_text_len: size("vl"),
        text_table_len: required("i"),
    }
}

#[test]
fn indices_are_those_of_the_published_program_bit_for_bit() {
    let bytes = std::fs::read(fixture::path("relpos/index.safetensors")).expect("the fixture");
    let file = SafeTensors::deserialize(&bytes).expect("a valid fixture");
    assert_eq!(file.len(), 25);
    for (name, expected) in file.tensors() {
        let (case, buffer) = name.split_once('.').expect("case and name");
        let window = window_of(case);
        if buffer == "table_rows" {
            assert_eq!((window.table_rows() as i64).to_le_bytes(), expected.data());
            continue;
        }
        let found = window.buffer(buffer).expect("a known buffer");
        assert_eq!(found.info.shape, expected.shape(), "{name}");
        assert_eq!(
            found.info.dtype.to_string(),
            expected.dtype().to_string(),
            "{name}"
        );
        assert_eq!(found.to_bytes(), expected.data(), "{name}");
    }
}

#[test]
fn every_buffer_of_a_saved_model_can_be_rebuilt() {
    let bytes = std::fs::read(fixture::path("ckpt/all_moe.safetensors")).expect("the fixture");
    let file = SafeTensors::deserialize(&bytes).expect("a valid fixture");
    let window = window_of("im48_p16_t12_i16");
    let mut n_buffers = 0;
    for (name, expected) in file.tensors() {
        if let Some(found) = window.buffer(&name) {
            assert_eq!(found.info.shape, expected.shape(), "{name}");
            assert_eq!(found.to_bytes(), expected.data(), "{name}");
            n_buffers += 1;
        }
    }
    assert_eq!(n_buffers, 8);
}

#[test]
fn rows_at_the_published_size_are_as_documented() {
    let window = Window {
        side: 14,
        text_len: 40,
        fused_text_len: None,
        text_table_len: 196,
    };
    assert_eq!((window.image_rows(), window.table_rows()), (732, 1126));
    // (query, key, row), read off the published program at 224 px, 40 of 196 text positions
    let image = window.image();
    for (query, key, row) in [
        (0, 0, 731),
        (0, 5, 729),
        (5, 0, 730),
        (1, 1, 364),
        (1, 2, 363),
        (2, 1, 365),
        (1, 15, 337),
        (196, 1, 728),
        (1, 196, 0),
    ] {
        assert_eq!(image[query * 197 + key], row, "image {query} {key}");
    }
    let text = window.text(40);
    for (query, key, row) in [
        (0, 0, 1125),
        (0, 3, 1123),
        (3, 0, 1124),
        (1, 1, 928),
        (1, 2, 929),
        (2, 1, 927),
        (1, 39, 966),
        (39, 1, 890),
    ] {
        assert_eq!(text[query * 40 + key], row, "text {query} {key}");
    }
    let joint = window.joint(40);
    for (query, key, row) in [(0, 40, 732), (5, 236, 732), (40, 0, 733), (236, 39, 733)] {
        assert_eq!(joint[query * 237 + key], row, "joint {query} {key}");
    }
}
