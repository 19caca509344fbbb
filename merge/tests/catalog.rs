//! The catalog against the published counts and the fixtures.

use std::collections::BTreeMap;

use merge::TensorInfo;
use merge::layouts::{self, CatalogSpec, Form, Heads, Part, Sizes, catalog};

use crate::memory::{checkpoint, fixture};

/// Names and shapes of a published checkpoint, and its specification.
pub fn listed(
    form: Form,
    sizes: &Sizes,
    heads: Heads,
    with_buffers: bool,
) -> (Vec<(String, TensorInfo)>, CatalogSpec) {
    let spec = CatalogSpec {
        form,
        sizes: sizes.clone(),
        heads,
        with_buffers,
        original_spelling: false,
    };
    let list = catalog(&spec);
    let tensors = list.into_iter().map(|(key, info, _)| (key, info));
    (tensors.collect(), spec)
}

/// Parameters of blocks, without heads, and in all; keys with buffers.
fn counted(form: Form, sizes: &Sizes, heads: Heads, image_size: usize) -> (u64, u64, u64, usize) {
    let sizes = Sizes {
        image_size,
        ..sizes.clone()
    };
    sizes.check().expect("published sizes");
    let (tensors, _) = listed(form, &sizes, heads, true);
    let n_keys = tensors.len();
    let checkpoint = checkpoint(tensors, &[]);
    let layout = layouts::detect(&checkpoint).expect("a sound checkpoint");
    let counts = layouts::count(&checkpoint, layout.as_ref());
    assert_eq!(counts.part(Part::Other).n_tensors, 0, "{form:?} {heads:?}");
    (
        counts.part(Part::Blocks).n_elements,
        counts.without_heads().n_elements,
        counts.parameters().n_elements,
        n_keys,
    )
}

/// Form and sizes; parameters of blocks, and without heads at 224 px; then parameters and keys
/// (buffers included) of each of [`RUNS`].
type Published<'a> = (Form, &'a Sizes, u64, u64, [(u64, usize); 4]);

const RUNS: [(Heads, usize); 4] = [
    (Heads::Pretrain, 224),
    (Heads::Retrieval, 384),
    (Heads::Vqa, 480),
    (Heads::Nlvr2, 384),
];

fn assert_counts(published: &[Published<'_>]) {
    for (form, sizes, blocks, without_heads, totals) in published {
        for ((heads, image_size), total) in RUNS.into_iter().zip(totals) {
            let found = counted(*form, sizes, heads, image_size);
            let name = format!("{form:?} {heads:?} of width {}", sizes.width);
            assert_eq!((found.0, (found.2, found.3)), (*blocks, *total), "{name}");
            if image_size == 224 {
                assert_eq!(found.1, *without_heads, "{name}");
            }
        }
    }
}

#[test]
fn vl_merging_checkpoints_have_the_published_counts() {
    use Form::{Agnostic, AllSpecific, AttnSpecific, FfnSpecific, LnSpecific};
    let (base, large, tiny) = (Sizes::base(), Sizes::large(), Sizes::tiny());
    // Counted by running the published program.
    #[rustfmt::skip]
    assert_counts(&[
        (Agnostic, &base, 85_063_680, 109_296_000, [(136_310_974, 220), (111_279_361, 207), (116_276_409, 210), (112_467_458, 210)]),
        (LnSpecific, &base, 85_106_688, 109_339_008, [(136_353_982, 276), (111_322_369, 263), (116_319_417, 266), (112_510_466, 266)]),
        (AttnSpecific, &base, 118_147_584, 142_379_904, [(169_394_878, 318), (144_363_265, 305), (149_360_313, 308), (145_551_362, 308)]),
        (FfnSpecific, &base, 151_199_232, 175_431_552, [(202_446_526, 304), (177_414_913, 291), (182_411_961, 294), (178_603_010, 294)]),
        (AllSpecific, &base, 184_283_136, 208_515_456, [(235_530_430, 402), (210_498_817, 389), (215_495_865, 392), (211_686_914, 392)]),
        (Agnostic, &large, 302_333_952, 334_860_288, [(372_442_942, 400), (338_575_361, 387), (345_481_273, 390), (340_683_778, 390)]),
        (LnSpecific, &large, 302_444_544, 334_970_880, [(372_553_534, 508), (338_685_953, 495), (345_591_865, 498), (340_794_370, 498)]),
        (AttnSpecific, &large, 415_718_400, 448_244_736, [(485_827_390, 589), (451_959_809, 576), (458_865_721, 579), (454_068_226, 579)]),
        (FfnSpecific, &large, 529_019_904, 561_546_240, [(599_128_894, 562), (565_261_313, 549), (572_167_225, 552), (567_369_730, 552)]),
        (AllSpecific, &large, 642_404_352, 674_930_688, [(712_513_342, 751), (678_645_761, 738), (685_551_673, 741), (680_754_178, 741)]),
        (Agnostic, &tiny, 5_340_672, 11_398_752, [(17_511_838, 220), (11_562_817, 207), (12_814_425, 210), (11_638_658, 210)]),
        (LnSpecific, &tiny, 5_351_424, 11_409_504, [(17_522_590, 276), (11_573_569, 263), (12_825_177, 266), (11_649_410, 266)]),
        (AttnSpecific, &tiny, 7_418_496, 13_476_576, [(19_589_662, 318), (13_640_641, 305), (14_892_249, 308), (13_716_482, 308)]),
        (FfnSpecific, &tiny, 9_488_256, 15_546_336, [(21_659_422, 304), (15_710_401, 291), (16_962_009, 294), (15_786_242, 294)]),
        (AllSpecific, &tiny, 11_566_080, 17_624_160, [(23_737_246, 402), (17_788_225, 389), (19_039_833, 392), (17_864_066, 392)]),
    ]);
}

#[test]
fn vlmo_checkpoints_have_the_published_counts() {
    let (base, plus, large) = (Sizes::base(), Sizes::base_plus(), Sizes::large());
    // As above, by running the published program; the README rounds the second to 175, 167, 562 M.
    #[rustfmt::skip]
    assert_counts(&[
        (Form::Vlmo, &base, 151_199_232, 175_430_496, [(202_445_470, 293), (177_413_857, 282), (182_410_905, 285), (178_601_954, 285)]),
        (Form::VlmoAbsolute, &plus, 149_411_232, 166_567_360, [(184_980_734, 503), (167_662_433, 492), (171_249_433, 495), (168_260_290, 495)]),
        (Form::Vlmo, &large, 529_019_904, 561_544_448, [(599_127_102, 551), (565_259_521, 540), (572_165_433, 543), (567_367_938, 543)]),
    ]);
}

/// fixtures/config.json
fn fixture_sizes() -> Sizes {
    Sizes {
        n_blocks: 12,
        width: 24,
        n_heads: 3,
        ffn_width: 96,
        fusion_start: 10,
        patch_size: 16,
        image_size: 48,
        text_len: 12,
        text_table_len: 16,
        vocabulary: 101,
        n_answers: 17,
        n_classes: 11,
    }
}

#[test]
fn the_catalog_lists_exactly_what_the_published_program_saved() {
    for (form, file) in [
        (Form::Agnostic, "ckpt/ufo.safetensors"),
        (Form::AllSpecific, "ckpt/all_moe.safetensors"),
    ] {
        // The fixtures have all heads at once; the third token type is NLVR2's.
        let mut all = BTreeMap::new();
        for heads in [Heads::Pretrain, Heads::Retrieval, Heads::Vqa, Heads::Nlvr2] {
            all.extend(listed(form, &fixture_sizes(), heads, true).0);
        }
        // No text length was set for fused passes; and one head is for image classification.
        all.retain(|key, _| !key.starts_with("vl_text_"));
        let saved: BTreeMap<String, TensorInfo> = fixture(file)
            .tensors()
            .filter(|(key, _)| !key.starts_with("img_cls_classifier"))
            .map(|(key, info)| (key.to_owned(), info.clone()))
            .collect();
        assert_eq!(all, saved, "{file}");
    }
}

#[test]
fn the_catalog_of_beit_lists_what_its_checkpoints_hold() {
    for (form, file, n_classes) in [
        (Form::BeitSharedTable, "convert/beit_shared.safetensors", 11),
        (
            Form::BeitPerBlockTables,
            "convert/beit_perlayer.safetensors",
            9,
        ),
    ] {
        let sizes = Sizes {
            image_size: 64,
            n_classes,
            ..fixture_sizes()
        };
        let (tensors, mut spec) = listed(form, &sizes, Heads::Pretrain, true);
        let saved: Vec<(String, TensorInfo)> = fixture(file)
            .tensors()
            .map(|(key, info)| (key.to_owned(), info.clone()))
            .collect();
        assert_eq!(tensors, saved, "{file}");

        spec.original_spelling = true;
        let original = checkpoint(
            catalog(&spec).into_iter().map(|(key, info, _)| (key, info)),
            &[],
        );
        assert!(original.get("blocks.0.attn.q_bias").is_some());
        let layout = layouts::detect(&original).expect("a sound checkpoint");
        assert!(layout.name().starts_with("beit/"), "{file}");
    }
}

#[test]
fn kinds_in_the_catalog_are_those_of_the_layout() {
    for form in [
        Form::AllSpecific,
        Form::Vlmo,
        Form::VlmoAbsolute,
        Form::BeitPerBlockTables,
    ] {
        let spec = CatalogSpec {
            form,
            sizes: Sizes::tiny(),
            heads: Heads::Pretrain,
            with_buffers: true,
            original_spelling: false,
        };
        let list = catalog(&spec);
        let names = list
            .iter()
            .map(|(key, info, _)| (key.clone(), info.clone()));
        let layout = layouts::detect(&checkpoint(names, &[])).expect("a sound checkpoint");
        for (key, info, kind) in &list {
            match layout.role(key).expect("a key of the family") {
                merge::Role::Shared(slot) | merge::Role::Expert { slot, .. } => {
                    assert_eq!(slot.kind, *kind, "{key}");
                }
                role => {
                    assert_eq!(role, merge::Role::Derived, "{key}");
                    let buffer = spec.window().buffer(key).expect("a known buffer");
                    assert_eq!(&buffer.info, info, "{key}");
                }
            }
        }
    }
}

#[test]
fn experts_are_counted_apart() {
    let (tensors, _) = listed(Form::AllSpecific, &Sizes::base(), Heads::None, false);
    let checkpoint = checkpoint(tensors, &[]);
    let layout = layouts::detect(&checkpoint).expect("a sound checkpoint");
    let counts = layouts::count(&checkpoint, layout.as_ref());
    // attention 4D² + 3D, FFN 8D² + 5D, two norms 4D, at D = 768
    let expert = 12 * 768 * 768 + 12 * 768;
    let elements: Vec<u64> = counts
        .by_expert
        .values()
        .map(|count| count.n_elements)
        .collect();
    assert_eq!(elements, [12 * expert, 12 * expert, 2 * expert]);
}

#[test]
fn impossible_sizes_are_refused() {
    let bad = |change: fn(&mut Sizes)| {
        let mut sizes = Sizes::tiny();
        change(&mut sizes);
        sizes
    };
    for sizes in [
        bad(|sizes| sizes.width = 0),
        bad(|sizes| sizes.n_heads = 5),
        bad(|sizes| sizes.fusion_start = 13),
        bad(|sizes| sizes.image_size = 8),
        bad(|sizes| sizes.text_len = 197),
        bad(|sizes| sizes.vocabulary = usize::MAX),
        bad(|sizes| (sizes.text_len, sizes.text_table_len) = (1, 1)),
    ] {
        let error = sizes.check().expect_err("impossible");
        assert!(error.is_usage(), "{sizes:?}: {error}");
    }
}
