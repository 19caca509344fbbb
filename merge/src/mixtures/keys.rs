//! The names that mark a tensor as an expert's or a router's.

/// Ends of the names of tensors that hold all experts of a mixture, behind that of the mixture.
const FUSED: [&str; 10] = [
    "experts.gate_up_proj",
    "experts.gate_up_proj_bias",
    "experts.gate_proj",
    "experts.up_proj",
    "experts.down_proj",
    "experts.down_proj_bias",
    "experts.gate_up_proj.weight",
    "experts.down_proj.weight",
    "input_linear.weight",
    "output_linear.weight",
];

/// First parts of the names of a router's tensors, behind that of the mixture.
const ROUTERS: [&str; 6] = [
    "gate",
    "router",
    "wg",
    "e_score_correction_bias",
    "expert_bias",
    "moe_statics",
];

/// The names of the part before the number of an expert, and of the parts before it that hold nothing else: DeepSpeed's
/// module and the list in it.
const LISTS: [&str; 2] = ["experts", "deepspeed_experts"];

/// A tensor of one expert: the name before its number, the number, and the name behind it.
pub(super) fn single(key: &str) -> Option<(&str, usize, &str)> {
    const MARK: &str = "experts.";
    let mut at = key.len();
    loop {
        at = key[..at].rfind(MARK)?;
        let (before, rest) = key.split_at(at + MARK.len());
        let list = before.strip_suffix('.').unwrap_or(before);
        let is_list = LISTS.contains(&list.rsplit('.').next().unwrap_or(list));
        let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(n_digits);
        if is_list && after.starts_with('.') && after.len() > 1 {
            // As programs write it, so that the number gives the name again.
            let number = number.parse::<u16>().ok();
            let number = number.filter(|number| number.to_string().len() == n_digits);
            if let Some(number) = number {
                return Some((before, usize::from(number), after));
            }
        }
    }
}

/// A tensor of all experts: the name of the mixture, and what tells the tensor from the others.
pub(super) fn fused(key: &str) -> Option<(&str, &str)> {
    FUSED.iter().find_map(|end| {
        let before = key.strip_suffix(end)?;
        let host = match before {
            "" => "",
            before => before.strip_suffix('.')?,
        };
        Some((host, end.strip_prefix("experts.").unwrap_or(end)))
    })
}

/// The name of the mixture whose experts have names that begin so.
pub(super) fn host(before: &str) -> &str {
    let mut host = before.strip_suffix('.').unwrap_or(before);
    loop {
        let (shorter, last) = host.rsplit_once('.').unwrap_or(("", host));
        if !LISTS.contains(&last) {
            return host;
        }
        host = shorter;
    }
}

/// The rest of a name after the name of a mixture.
pub(super) fn within<'k>(host: &str, key: &'k str) -> Option<&'k str> {
    match host {
        "" => Some(key),
        host => key.strip_prefix(host)?.strip_prefix('.'),
    }
}

/// The names of mixtures whose router a tensor may belong to, by its name.
pub(super) fn router_hosts(key: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    key.split('.').filter_map(move |part| {
        let host = &key[..start.max(1) - 1];
        start += part.len() + 1;
        ROUTERS.contains(&part).then_some(host)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_experts_are_taken_apart() {
        for (key, expected) in [
            (
                "model.layers.3.block_sparse_moe.experts.11.w1.weight",
                ("model.layers.3.block_sparse_moe.experts.", 11, ".w1.weight"),
            ),
            (
                "backbone.encoder.layers.2.mlp_moe.moe.experts.experts.0.fc1.bias",
                (
                    "backbone.encoder.layers.2.mlp_moe.moe.experts.experts.",
                    0,
                    ".fc1.bias",
                ),
            ),
            ("experts.0.w", ("experts.", 0, ".w")),
            (
                "a.deepspeed_moe.experts.deepspeed_experts.3.w1.weight",
                (
                    "a.deepspeed_moe.experts.deepspeed_experts.",
                    3,
                    ".w1.weight",
                ),
            ),
        ] {
            assert_eq!(single(key), Some(expected));
        }
        for key in [
            "a.shared_experts.0.w",
            "a.experts.w",
            "a.experts.0",
            "a.experts.00.w",
            "a.experts.70000.w",
            "experts.0.",
        ] {
            assert_eq!(single(key), None, "{key}");
        }
        assert_eq!(host("a.mlp.experts."), "a.mlp");
        assert_eq!(host("a.moe.experts.experts."), "a.moe");
        assert_eq!(host("experts."), "");
        assert_eq!(
            host("a.deepspeed_moe.experts.deepspeed_experts."),
            "a.deepspeed_moe"
        );
        assert_eq!(
            fused("a.mlp.experts.gate_up_proj"),
            Some(("a.mlp", "gate_up_proj"))
        );
        assert_eq!(
            fused("a.moe.input_linear.weight"),
            Some(("a.moe", "input_linear.weight"))
        );
        assert_eq!(fused("a.mlp.shared_experts.gate_up_proj"), None);
        assert_eq!(within("a.mlp", "a.mlp.gate.weight"), Some("gate.weight"));
        assert_eq!(within("a.mlp", "a.mlp2.gate.weight"), None);
        let hosts = |key: &'static str| router_hosts(key).collect::<Vec<_>>();
        assert_eq!(hosts("a.moe.gate.wg.weight"), ["a.moe", "a.moe.gate"]);
        assert_eq!(hosts("router.bias"), [""]);
        assert!(hosts("a.mlp.gate_proj.weight").is_empty());
        assert!(hosts("a.mlp.shared_expert_gate.weight").is_empty());
    }
}
