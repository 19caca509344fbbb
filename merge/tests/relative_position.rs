//! Index buffers: those of a saved model, and rows at the published size.

use merge::layouts::Window;

#[test]
fn every_buffer_of_a_saved_model_can_be_rebuilt() {
    let config = fixtures::json("config.json");
    let size = |name: &str| config[name].as_u64().expect("a size") as usize;
    let window = Window {
        side: size("image_size") / size("patch_size"),
        text_len: size("max_text_len"),
        fused_text_len: None,
        text_table_len: size("max_text_len_of_initckpt"),
    };
    let mut n_buffers = 0;
    for (name, expected) in fixtures::tensors(&fixtures::path("ckpt/all_moe.safetensors")) {
        if let Some(found) = window.buffer(&name) {
            assert_eq!(found.info.shape, expected.shape, "{name}");
            assert!(found.to_bytes() == expected.bytes, "{name}");
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
