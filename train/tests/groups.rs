//! Which variable is in which group.

use evaluate::models::{Grouping, multiway};
use train::optim::{GroupKind, GroupRules, OptimSettings, ParamGroups};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Names and shapes as vl-merging and VLMo spell them, with the group under the published and the exact
/// rules (quirk 24 of the program).
const CASES: [(&str, &[usize], GroupKind, GroupKind); 15] = {
    use GroupKind::{BodyDecay as D, BodyNoDecay as N, HeadDecay as HD, HeadNoDecay as HN};
    [
        ("transformer.cls_token", &[1, 1, 24], D, D),
        ("transformer.blocks.0.attn.v.qkv.weight", &[72, 24], D, D),
        ("transformer.blocks.0.attn.vl.qkv.weight", &[72, 24], D, D),
        ("transformer.blocks.0.attn.v_bias", &[24], N, N),
        ("transformer.blocks.0.gamma_1", &[24], D, D),
        ("transformer.blocks.0.norm1.weight", &[24], N, N),
        ("transformer.blocks.0.norm1.v.weight", &[24], D, N),
        ("transformer.blocks.0.norm1.v.bias", &[24], N, N),
        ("transformer.blocks.0.norm2.l.weight", &[24], D, N),
        ("text_embeddings.LayerNorm.weight", &[24], N, N),
        ("relative_position_bias_table", &[732, 3], N, N),
        ("logit_scale", &[], D, D),
        ("vqa_classifier.0.weight", &[48, 24], HD, HD),
        ("vqa_classifier.1.weight", &[48], HD, HN),
        ("vqa_classifier.1.bias", &[48], HN, HN),
    ]
};

fn variables() -> impl Iterator<Item = (&'static str, &'static [usize])> {
    CASES.iter().map(|case| (case.0, case.1))
}

#[test]
fn every_variable_is_where_the_rules_put_it() -> Outcome {
    for rules in [GroupRules::Published, GroupRules::Exact] {
        let settings = OptimSettings {
            rules,
            lr_mult: 10.0,
            weight_decay: 0.05,
            head_weight_decay: 0.02,
            ..OptimSettings::default()
        };
        let groups = ParamGroups::of(variables(), &multiway::GROUPING, &settings.groups())?;
        for (name, _, published, exact) in CASES {
            let group = groups.group(name)?;
            let wanted = if rules == GroupRules::Exact {
                exact
            } else {
                published
            };
            assert_eq!(group.kind, wanted, "{name}");
            let (factor, decay) = match wanted {
                GroupKind::BodyDecay => (1.0, 0.05),
                GroupKind::HeadDecay => (10.0, 0.02),
                GroupKind::HeadNoDecay => (10.0, 0.0),
                _ => (1.0, 0.0),
            };
            assert_eq!((group.rate_factor, group.decay), (factor, decay), "{name}");
        }
        groups.check(CASES.iter().map(|case| case.0))?;
        let elements: usize = groups.groups().iter().map(|group| group.elements).sum();
        let shapes = CASES.iter().map(|case| case.1.iter().product::<usize>());
        assert_eq!(elements, shapes.sum::<usize>());
    }
    Ok(())
}

#[test]
fn a_raised_path_is_matched_by_whole_segments() -> Outcome {
    let settings = OptimSettings {
        raised: vec!["attn.v".into()],
        ..OptimSettings::default()
    };
    let groups = ParamGroups::of(variables(), &multiway::GROUPING, &settings.groups())?;
    let kind = |name: &str| groups.group(name).map(|group| group.kind);
    let block = "transformer.blocks.0";
    assert_eq!(
        kind(&format!("{block}.attn.v.qkv.weight"))?,
        GroupKind::HeadDecay
    );
    // The published program takes these along (its quirk 33).
    assert_eq!(
        kind(&format!("{block}.attn.vl.qkv.weight"))?,
        GroupKind::BodyDecay
    );
    assert_eq!(
        kind(&format!("{block}.attn.v_bias"))?,
        GroupKind::BodyNoDecay
    );
    Ok(())
}

#[test]
fn what_is_not_trainable_is_frozen() -> Outcome {
    let settings = OptimSettings {
        trainable: vec!["norm2.l".into(), "text_embeddings".into()],
        ..OptimSettings::default()
    };
    let groups = ParamGroups::of(variables(), &multiway::GROUPING, &settings.groups())?;
    let trained = (groups.groups().iter())
        .filter(|group| group.kind != GroupKind::Frozen)
        .flat_map(|group| &group.names);
    let wanted = [
        "transformer.blocks.0.norm2.l.weight",
        "text_embeddings.LayerNorm.weight",
    ];
    assert!(trained.eq(wanted), "{groups:?}");
    Ok(())
}

#[test]
fn a_variable_in_no_group_in_two_or_missing_is_named() -> Outcome {
    let settings = OptimSettings::default().groups();
    let groups = ParamGroups::of(variables(), &multiway::GROUPING, &settings)?;
    let names = || CASES.iter().map(|case| case.0);
    let said = |outcome: train::Result<()>| outcome.err().map(|e| e.to_string());
    let more = said(groups.check(names().chain(["new.weight"])));
    assert!(more.is_some_and(|text| text.contains("`new.weight` is in no group")));
    let twice = said(groups.check(names().chain(["logit_scale"])));
    assert!(twice.is_some_and(|text| text.contains("`logit_scale` is twice")));
    let fewer = said(groups.check(names().skip(1)));
    assert!(fewer.is_some_and(|text| text.contains("transformer.cls_token")));
    let twice = ParamGroups::of(
        variables().chain(variables()),
        &multiway::GROUPING,
        &settings,
    );
    assert!(matches!(twice, Err(train::Error::GroupedTwice { .. })));
    Ok(())
}

#[test]
fn a_setting_that_matches_nothing_is_refused() {
    for settings in [
        OptimSettings {
            trainable: vec!["text_embedings".into()],
            ..OptimSettings::default()
        },
        OptimSettings {
            raised: vec!["mlp.v".into()],
            ..OptimSettings::default()
        },
        OptimSettings {
            heads: Some(vec!["vqa_clasifier".into()]),
            ..OptimSettings::default()
        },
    ] {
        let outcome = ParamGroups::of(variables(), &multiway::GROUPING, &settings.groups());
        assert!(matches!(outcome, Err(train::Error::MatchesNothing { .. })));
    }
}

#[test]
fn heads_of_the_settings_take_the_place_of_the_familys() -> Outcome {
    let settings = OptimSettings {
        heads: Some(vec!["logit_scale".into()]),
        ..OptimSettings::default()
    };
    let groups = ParamGroups::of(variables(), &multiway::GROUPING, &settings.groups())?;
    let kind = |name: &str| groups.group(name).map(|group| group.kind);
    assert_eq!(kind("logit_scale")?, GroupKind::HeadDecay);
    assert_eq!(kind("vqa_classifier.0.weight")?, GroupKind::BodyDecay);
    assert_eq!(kind("vqa_classifier.1.bias")?, GroupKind::BodyNoDecay);
    Ok(())
}

#[test]
fn cross_modal_layers_learn_at_a_rate_of_their_own_where_the_family_has_them() -> Outcome {
    let family = Grouping {
        heads: &["vqa_classifier"],
        cross_modal: &["transformer.blocks.0"],
        undecayed: &["bias", "norm1.weight"],
        ..Grouping::NONE
    };
    let settings = OptimSettings {
        lr_mult: 50.0,
        cross_modal_lr_mult: 5.0,
        weight_decay: 0.05,
        ..OptimSettings::default()
    };
    let groups = ParamGroups::of(variables(), &family, &settings.groups())?;
    let of = |name: &str| -> train::Result<_> {
        let group = groups.group(name)?;
        Ok((group.kind, group.rate_factor, group.decay))
    };
    let block = "transformer.blocks.0";
    let decayed = (GroupKind::CrossModalDecay, 5.0, 0.05);
    assert_eq!(of(&format!("{block}.attn.v.qkv.weight"))?, decayed);
    let undecayed = (GroupKind::CrossModalNoDecay, 5.0, 0.0);
    assert_eq!(of(&format!("{block}.norm1.weight"))?, undecayed);
    assert_eq!(
        of("transformer.cls_token")?,
        (GroupKind::BodyDecay, 1.0, 0.05)
    );
    assert_eq!(
        of("vqa_classifier.1.bias")?,
        (GroupKind::HeadNoDecay, 50.0, 0.0)
    );

    let refused = ParamGroups::of(variables(), &multiway::GROUPING, &settings.groups());
    let text = refused.err().map(|error| error.to_string());
    assert!(
        text.as_deref()
            .is_some_and(|text| text.contains("cross_modal_lr_mult")),
        "{text:?}"
    );
    Ok(())
}
