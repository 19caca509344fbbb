//! Index buffers against those of the published program.

use fixtures::Case;
use merge::layouts::Window;

fixtures::golden_tests! {
    package: "merge", set: "vl_merging",
    indices_are_those_of_the_published_program_bit_for_bit: "relpos_index" => indices,
}

/// `im48_p16_t12_i16_vl6` → image, patch, text, text of the table, text of fused passes.
fn window_of(sizes: &str) -> Window {
    let size = |letters: &str| {
        sizes
            .split('_')
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

fn indices(case: &Case) {
    assert_eq!(case["tolerance"], "exact");
    let expected = case.tensors("expected");
    assert!(!expected.is_empty(), "a comparison");
    for (name, expected) in expected {
        let (sizes, buffer) = name.split_once('.').expect("sizes and name");
        let window = window_of(sizes);
        if buffer == "table_rows" {
            assert_eq!(expected.integers(), [window.table_rows() as i64], "{name}");
            continue;
        }
        let found = window.buffer(buffer).expect("a known buffer");
        assert_eq!(found.info.shape, expected.shape, "{name}");
        assert_eq!(
            found.info.dtype.to_string(),
            expected.dtype.to_string(),
            "{name}"
        );
        assert!(found.to_bytes() == expected.bytes, "{name}");
    }
}
