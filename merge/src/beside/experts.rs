//! Experts of mixtures in a configuration: their number, the number that a token goes to, and the groups that a router
//! picks among.

use serde_json::{Map, Value, json};

use super::layers::parts::{part, part_mut, parts_of_stack, place};

/// Keys with the number of experts of a mixture.
const COUNTS: [&str; 4] = [
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "moe_num_experts",
];

/// Keys with the number of experts that a token goes to.
pub(super) const PER_TOKEN: [&str; 3] = ["num_experts_per_tok", "moe_topk", "moe_k"];

/// The number of a mixture's experts, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// The mixture, by what the names of its tensors begin with.
    pub(crate) host: String,
    /// Experts before.
    pub(crate) before: usize,
    /// Experts after.
    pub(crate) after: usize,
}

/// The changed keys of a configuration, and notes on the changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// Keys.
    pub(crate) keys: Vec<String>,
    /// Notes for users.
    pub(crate) notes: Vec<String>,
}

impl Said {
    /// Keys without notes.
    pub(crate) fn of(keys: &[&str]) -> Self {
        Self {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            notes: Vec::new(),
        }
    }
}

/// The stack of layers that a mixture is in, and its layer.
pub(crate) fn layer_of(host: &str) -> (&str, usize) {
    let mut end = host.len();
    loop {
        let start = host[..end].rfind('.').map_or(0, |dot| dot + 1);
        if let Ok(layer) = host[start..end].parse() {
            return (&host[..start.saturating_sub(1)], layer);
        }
        if start == 0 {
            return (host, 0);
        }
        end = start - 1;
    }
}

/// Says how many experts there are now. A key has one number for all layers, or a list with one for each.
///
/// # Errors
/// A clause on what the configuration cannot say.
pub(crate) fn set_counts(config: &mut Value, mixtures: &[Counted]) -> Result<Said, String> {
    let mut said = Said::default();
    let mut stacks: Vec<&str> = mixtures.iter().map(|of| layer_of(&of.host).0).collect();
    stacks.dedup();
    for stack in stacks {
        let of_stack = mixtures.iter().filter(|of| layer_of(&of.host).0 == stack);
        let of_stack: Vec<(usize, &Counted)> =
            of_stack.map(|of| (layer_of(&of.host).1, of)).collect();
        let mut is_said = false;
        for path in parts_of_stack(config, stack) {
            let place = place(&path);
            let Some(own) = part_mut(config, &path) else {
                continue;
            };
            for key in COUNTS {
                let Some(value) = own.get_mut(key) else {
                    continue;
                };
                if set_count(value, &of_stack).map_err(|why| format!("`{place}{key}` {why}"))? {
                    is_said = true;
                    said.keys.push(format!("{place}{key}"));
                }
            }
            if is_said {
                limit_choices(own, &place, &of_stack, &mut said);
            }
        }
        if !is_said {
            let n = mixtures.first().map_or(0, |of| of.before);
            return Err(format!(
                "no number of experts of `{stack}` is {n}, as in the weights"
            ));
        }
    }
    Ok(said)
}

/// Changes a number of experts; whether it was theirs.
fn set_count(value: &mut Value, mixtures: &[(usize, &Counted)]) -> Result<bool, String> {
    if let Some(list) = value.as_array_mut() {
        let fits = mixtures
            .iter()
            .all(|(layer, of)| list.get(*layer) == Some(&json!(of.before)));
        if fits {
            for (layer, of) in mixtures {
                list[*layer] = json!(of.after);
            }
        }
        return Ok(fits);
    }
    if !mixtures.iter().all(|(_, of)| *value == json!(of.before)) {
        return Ok(false);
    }
    let after = || mixtures.iter().map(|(_, of)| of.after);
    let (least, most) = (after().min().unwrap_or(0), after().max().unwrap_or(0));
    if least != most {
        return Err(format!(
            "is one number for all layers, which keep {least} to {most} experts"
        ));
    }
    *value = json!(most);
    Ok(true)
}

/// A token cannot go to more experts than there are.
fn limit_choices(
    own: &mut Map<String, Value>,
    place: &str,
    mixtures: &[(usize, &Counted)],
    said: &mut Said,
) {
    let least = mixtures.iter().map(|(_, of)| of.after).min().unwrap_or(0);
    for key in PER_TOKEN {
        let Some(value) = own.get_mut(key) else {
            continue;
        };
        let of_layers: Vec<(&mut Value, usize)> = match value {
            Value::Array(list) => {
                let after = |layer| mixtures.iter().find(|(of, _)| *of == layer);
                let list = list.iter_mut().enumerate();
                list.filter_map(|(layer, value)| Some((value, after(layer)?.1.after)))
                    .collect()
            }
            value => vec![(value, least)],
        };
        let mut is_changed = false;
        for (value, most) in of_layers {
            if value.as_u64().is_some_and(|n| n > most as u64) {
                *value = json!(most);
                is_changed = true;
            }
        }
        if is_changed {
            said.keys.push(format!("{place}{key}"));
            said.notes.push(format!(
                "config.json: `{place}{key}` was more than the experts that stay; a token goes to all of them now"
            ));
        }
    }
}

/// The choice of experts by a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Experts that a token goes to, where that is one number.
    pub(crate) per_token: Option<usize>,
    /// Groups that the router picks first, where there are several.
    pub(crate) groups: Option<Groups>,
}

/// Groups of experts, each as many in a row, of which a router picks some before it picks experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    /// The number of groups.
    pub(crate) n: usize,
    /// The number of groups that a token's experts are in.
    pub(crate) chosen: usize,
    /// Experts that a group is judged by, and so the least that it can have.
    pub(crate) least: usize,
}

/// The choice of a mixture's experts by a configuration.
pub(crate) fn choice(config: &Value, host: &str) -> Choice {
    let (stack, _) = layer_of(host);
    let paths = parts_of_stack(config, stack);
    let parts = || paths.iter().filter_map(|path| part(config, path));
    let number = |keys: &[&str]| {
        let mut found = parts().flat_map(|part| keys.iter().filter_map(|key| part.get(*key)));
        let number = found.find_map(Value::as_u64)?;
        usize::try_from(number).ok()
    };
    let method = parts().find_map(|part| part.get("topk_method")?.as_str());
    // DeepSeek-V2 judges a group by its best expert and may not ask for groups at all, later ones by its best two.
    let least = match method {
        Some("group_limited_greedy") => 1,
        _ => 2,
    };
    let groups = number(&["n_group"]).filter(|&n| n > 1 && method != Some("greedy"));
    Choice {
        per_token: number(&PER_TOKEN),
        groups: groups.map(|n| Groups {
            n,
            chosen: number(&["topk_group"]).unwrap_or(n),
            least,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(layers: &[(usize, usize)], before: usize) -> Vec<Counted> {
        let mixture = |&(layer, after): &(usize, usize)| Counted {
            host: format!("model.layers.{layer}.mlp"),
            before,
            after,
        };
        layers.iter().map(mixture).collect()
    }

    #[test]
    fn the_layer_of_a_mixture_is_the_last_number_of_its_name() {
        assert_eq!(layer_of("model.layers.3.mlp"), ("model.layers", 3));
        assert_eq!(layer_of("a.1.layers.12"), ("a.1.layers", 12));
        assert_eq!(layer_of("mlp"), ("mlp", 0));
    }

    #[test]
    fn numbers_of_experts_follow_at_the_top_and_in_parts() {
        let mut config =
            json!({"num_local_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 8});
        let said = set_counts(&mut config, &counted(&[(0, 4), (1, 4)], 8)).expect("said");
        assert_eq!(said.keys, ["num_local_experts"]);
        assert_eq!(
            config,
            json!({"num_local_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 8})
        );
        let mut config = json!({"text_config": {"n_routed_experts": 8, "num_experts_per_tok": 6}});
        let said = set_counts(&mut config, &counted(&[(0, 4)], 8)).expect("said");
        assert_eq!(
            config["text_config"],
            json!({"n_routed_experts": 4, "num_experts_per_tok": 4})
        );
        assert!(
            said.notes[0].contains("text_config.num_experts_per_tok"),
            "{said:?}"
        );
    }

    #[test]
    fn lists_hold_a_number_for_each_layer_and_one_number_holds_one() {
        let mut config = json!({"num_experts": [1, 8, 8], "moe_topk": [1, 2, 4]});
        set_counts(&mut config, &counted(&[(1, 3), (2, 5)], 8)).expect("said");
        assert_eq!(
            config,
            json!({"num_experts": [1, 3, 5], "moe_topk": [1, 2, 4]})
        );
        let mut config = json!({"num_experts": 8});
        let why = set_counts(&mut config, &counted(&[(1, 3), (2, 5)], 8)).expect_err("no list");
        assert_eq!(
            why,
            "`num_experts` is one number for all layers, which keep 3 to 5 experts"
        );
        for mut config in [json!({}), json!({"num_experts": 16})] {
            let why = set_counts(&mut config, &counted(&[(0, 4)], 8)).expect_err("not said");
            assert_eq!(
                why,
                "no number of experts of `model.layers` is 8, as in the weights"
            );
        }
    }

    #[test]
    fn groups_are_those_that_the_router_picks_first() {
        let of = |config: Value| choice(&config, "model.layers.0.mlp");
        let groups = of(json!({"n_group": 4, "topk_group": 2, "num_experts_per_tok": 6}));
        let expected = Groups {
            n: 4,
            chosen: 2,
            least: 2,
        };
        assert_eq!((groups.per_token, groups.groups), (Some(6), Some(expected)));
        let second = json!({"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"});
        assert_eq!(of(second).groups.map(|groups| groups.least), Some(1));
        for none in [
            json!({"n_group": 1, "topk_group": 1}),
            json!({"n_group": null}),
            json!({"n_group": 4, "topk_method": "greedy"}),
        ] {
            assert_eq!(of(none).groups, None);
        }
    }
}
