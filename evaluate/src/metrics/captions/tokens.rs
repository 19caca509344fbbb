//! Captions to tokens as the captioning challenge does it: the tokenizer of the Penn Treebank, lower
//! case, punctuation left out.
//!
//! At each place the rule that reaches furthest wins; of several the first. The text that a rule captures
//! becomes a token; the part of its match behind that must merely follow. Written from what the
//! official tool answers to probes (Stanford CoreNLP 3.4.1, as pycocoevalcap 1.2 calls it); equal to
//! it on all recorded cases. `docs/parity.md` says where the two are known to differ.

use std::sync::LazyLock;

use regex::Regex;

/// Abbreviations, in any case of letters: a period after them belongs to the word.
const ABBREVIATIONS: &str = "adj adm adv al ala alex apr ariz assn atty aug ave bancorp bhd bldg blvd brig bros calif capt cf \
     cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec esq est etc ext feb fla \
     fri ft ga gen gov hon inc ind insp intl invt jan jos jr jul jun kan kans ky lt ltd maj mar md \
     messrs mich minn mo mon mont mr mrs ms mt natl neb nev nov oct okla penn pfc ph plc pres prof pvt \
     rd rep rev rt sen sep sept seq sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues \
     univ va vs vt wed wis wisc wm wyo";

/// The same, but words when written otherwise.
const CASED_ABBREVIATIONS: &str = "ARK Ark AZ Az DEL Del ILL Ill LA La MASS Mass MISS Miss ORE Ore PA Pa TEX Tex WASH Wash \
     Mfg mfg Mtg mtg Pty pty";

/// The same, if a number follows.
const NUMBERED_ABBREVIATIONS: &str = "art ca fig figs no nos op pp prop";

/// A letter with which none of the verbs begins that are cut off behind an apostrophe: 's, 'd, 'm, 'll, 're
/// and 've.
const NO_SHORT_VERB: &str =
    r"(?:[\p{L}--[sdmlrvSDMLRV]]|[lL](?:[\p{L}--[lL]]|\P{L}|$)|[rvRV](?:[\p{L}--[eE]]|\P{L}|$))";

/// Longer words are split, so that the work grows with the text and not with its square.
const MAX_TOKEN_BYTES: usize = 1024;

/// The form of a token from captured text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As it is.
    Typed,
    /// With a straight apostrophe.
    Straight,
    /// Of the spaces that cannot be broken: `1 1/2` is one token.
    Joined,
    /// With brackets by name, and joined.
    Bracketed,
    /// As the character it stands for.
    Entity,
    /// One or several marks, which are dropped unless they are `?!`, `!!` and the like.
    Marks,
}

/// Patterns, in the order in which they win. In them `@L` is a letter, `@D` a digit, `@A` an
/// apostrophe, `@H` a hyphen, `@E` the end of a word and `@V` [`NO_SHORT_VERB`].
const RULES: &[(Form, &str)] = &[
    // Names of brackets, and words that are split in two.
    (Form::Typed, r"(?i)(-[lr][rsc]b-)"),
    (Form::Typed, r"(?i)(can)not@E"),
    (Form::Typed, r"(?i)(gim|lem)me@E"),
    (Form::Typed, r"(?i)(gon|wan)na@E"),
    (Form::Typed, r"(?i)(got)ta@E"),
    (Form::Typed, r"(?i)('t)(?:is|was)"),
    (Form::Typed, r"(@L(?:@L|@D)*)(?i:@A(?:ll|re|ve|s|m|d))@E"),
    // Addresses, tags and handles.
    (
        Form::Typed,
        r#"(<?[a-zA-Z0-9][^\s"<>|(){}]*@(?:[^\s"<>|(){}.]+\.)*[^\s"<>|(){}.]+>?)"#,
    ),
    (Form::Joined, r"(</?[A-Za-z!?][^<>\r\n]*>)"),
    (
        Form::Entity,
        r"(?i)(&(?:amp|lt|gt|quot|nbsp|mdash|ndash|#39);)",
    ),
    (Form::Typed, r#"(https?://[^\s"<>|()]+[^\s"<>|().!?,;:'-])"#),
    (
        Form::Typed,
        r#"((?:www\.(?:[^\s"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}|(?:[^\s"`'<>|.!?(){},\-_$/]+\.)+(?:com|net|org|edu))(?:/[^\s"<>|()]+[^\s"<>|().!?,;'-])?)(?:\P{L}|$)"#,
    ),
    (Form::Typed, r"(@[A-Za-z_][A-Za-z_0-9]*|#\p{L}+)"),
    (
        Form::Bracketed,
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?:[^A-Za-z]|$)",
    ),
    (Form::Typed, r"([-^x=~<>']_[-^x=~<>'])"),
    // Numbers.
    (
        Form::Bracketed,
        r"((?:\([0-9]{3}\)[- ]?|(?:\+?[0-9]{1,2}[- ])?[0-9]{3}[-. ])?[0-9]{3,4}[-. ][0-9]{4})(?:[^\p{L}0-9]|$)",
    ),
    (Form::Joined, r"([0-9]{1,4}[- \u{A0}][0-9]{1,4}/[0-9]{1,4})"),
    (Form::Typed, r"([-+]?(?:[0-9]*(?:[.:,][0-9]+)+|[0-9]+))"),
    (
        Form::Typed,
        r"([A-Za-z0-9.][A-Za-z0-9.,]*(?:-(?:[A-Za-z0-9_]+|[A-Za-z](?:\.[A-Za-z])+\.))+)",
    ),
    // Words.
    (
        Form::Typed,
        r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",
    ),
    (Form::Entity, r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+|[CF]\+\+)"),
    (Form::Typed, r"(@L(?:@L|@D)*(?:[.!?]@L(?:@L|@D)*)*)"),
    (
        Form::Typed,
        r"(@L(?:@L|@D)*(?:[.]@L(?:@L|@D)*)*(?:@H(?:@L|@D)+)+)",
    ),
    (
        Form::Typed,
        r"((?:[dDoOlL]@A[A-Za-z0-9])?(?:@L|@D)+(?:@H(?:[dDoOlL]@A[A-Za-z0-9])?(?:@L|@D)+)*)",
    ),
    (Form::Typed, r"([A-Za-z](?:\.[A-Za-z])*\.(?:@H(?:@L|@D)+)*)"),
    (Form::Typed, r"([A-Za-z](?:\.[A-Za-z])+(?:@H(?:@L|@D)+)*)"),
    (
        Form::Typed,
        r"([A-Za-z](?:\.[A-Za-z])+\.(?:@H[A-Za-z](?:\.[A-Za-z])+\.)+)",
    ),
    (Form::Typed, r"((?i:ABBREVIATION)\.(?:@H(?:@L|@D)+)*)"),
    (Form::Typed, r"((?:CASED)\.)"),
    (Form::Typed, r"((?i:ph|ed)\.[Dd]\.)"),
    (Form::Typed, r"((?i:NUMBERED)\.)\s?[0-9]"),
    (
        Form::Typed,
        r"([A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*_[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*)",
    ),
    (Form::Typed, r"([CF]#)"),
    // Apostrophes.
    (Form::Straight, r"(@L*[\p{L}--[nN]])(?i:n['’‘`]t)"),
    (Form::Straight, r"((?i:n['’‘`]t))(?:\P{L}|$)"),
    (Form::Straight, r"((?i:@A(?:ll|re|ve|s|m|d)))(?:\P{L}|$)"),
    (Form::Straight, r"(?i)(’(?:ll|re|ve|s|m|d))"),
    (
        Form::Typed,
        r"(?i)(@An@A|@Aem|@Atill?|@Acause|@A[2-9]0s|dunkin@A|somethin@A|[ld]@A|cap@An|c@Aest|’n)",
    ),
    // These are whole with a straight apostrophe alone.
    (
        Form::Typed,
        r"(?i)(c'mon|s'mores|ev'ry|li'l|nat'l|e'er|nor'easter)",
    ),
    (Form::Typed, r"(?i)(@An@A?|o'o)(?:\P{L}|$)"),
    (Form::Typed, r"(?i)(j@A)(?:\P{L}|$)"),
    (
        Form::Typed,
        r"([A-HJ-XZn]@A\p{L}{2,}|\p{L}+[aeiouyAEIOUY]@A[aeiouA-Z]\p{L}*)",
    ),
    // Unless what follows begins as a verb does that is cut off there: `y'all`, but no `y'see`.
    (Form::Typed, r"([jJyY]@A)@V"),
    (Form::Typed, r"([oO][lL]@A)(?:@V|\P{L}|$)"),
    (Form::Typed, r"(@A[0-9]{2})(?:\s|$)"),
    // Signs.
    (Form::Typed, r"([A-Z]*\$)"),
    (Form::Marks, r"(--+|''|\?[?!]*|![?!]*|\.\.\.|,|;)"),
    (Form::Typed, r"(\*+|_+|#+|@+|<<|>>)"),
];

/// Characters with another name.
const NAMED: [(&str, &str); 14] = [
    ("(", "-lrb-"),
    (")", "-rrb-"),
    ("[", "-lsb-"),
    ("]", "-rsb-"),
    ("{", "-lcb-"),
    ("}", "-rcb-"),
    ("€", "$"),
    ("£", "#"),
    ("¢", "cents"),
    ("½", "1/2"),
    ("¼", "1/4"),
    ("¾", "3/4"),
    ("⅓", "1/3"),
    ("⅔", "2/3"),
];

/// Quotation marks, dashes and single marks, which are no tokens.
const DROPPED: &str = "'\"`‘’“”«»‹›„‚「」.,:;-?!–—―…‑‐";

struct Rule {
    form: Form,
    pattern: Regex,
}

static COMPILED: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let either = |words: &str| words.split_whitespace().collect::<Vec<_>>().join("|");
    let spelled = |pattern: &str| {
        // Longer names first, since they hold the shorter.
        let pattern = pattern.replace("NUMBERED", &either(NUMBERED_ABBREVIATIONS));
        let pattern = pattern.replace("CASED", &either(CASED_ABBREVIATIONS));
        let pattern = pattern.replace("ABBREVIATION", &either(ABBREVIATIONS));
        let pattern = pattern.replace("@E", r"(?:[^\p{L}0-9]|$)");
        let pattern = pattern.replace("@V", NO_SHORT_VERB);
        let pattern = pattern.replace("@L", r"[[\p{L}\p{M}\u{AD}]--[\u{FE00}-\u{FE0F}]]");
        let pattern = pattern.replace("@D", r"\p{Nd}").replace("@A", "['’]");
        pattern.replace("@H", r"[-\u{2010}\u{2011}]")
    };
    let compile = |&(form, pattern): &(Form, &str)| Rule {
        form,
        pattern: Regex::new(&format!("^(?:{})", spelled(pattern)))
            .expect("the pattern is written right"),
    };
    RULES.iter().map(compile).collect()
});

/// The tokens of a caption, with a space between two.
///
/// # Example
/// ```
/// use evaluate::metrics::captions::tokenize;
/// assert_eq!(tokenize("The dog isn't on Main St., it's \"here\"!"), "the dog is n't on main st. it 's here");
/// ```
#[must_use]
pub fn tokenize(caption: &str) -> String {
    let caption = caption.replace("&apos;", "'");
    let mut rest = caption.as_str();
    let mut tokens: Vec<String> = Vec::new();
    while let Some(first) = rest.chars().next() {
        let found = (!is_space(first)).then(|| furthest(rest)).flatten();
        let length = found.map_or(first.len_utf8(), |(_, length)| length);
        let (text, behind) = rest.split_at(length);
        rest = behind;
        tokens.extend(match found {
            Some((form, _)) => written(form, text),
            None => sign(first),
        });
    }
    tokens.join(" ")
}

/// The rule that reaches furthest, and how many bytes it captures.
fn furthest(text: &str) -> Option<(Form, usize)> {
    let text = &text[..text.floor_char_boundary(MAX_TOKEN_BYTES)];
    let mut best: Option<(Form, usize)> = None;
    let mut reach = 0;
    for rule in COMPILED.iter() {
        let Some(found) = rule.pattern.captures(text) else {
            continue;
        };
        let (all, token) = (found.get_match().end(), found.get(1).map_or(0, |m| m.end()));
        if token > 0 && all > reach {
            (best, reach) = (Some((rule.form, token)), all);
        }
    }
    best
}

/// The token that captured text becomes, if any.
fn written(form: Form, text: &str) -> Option<String> {
    let text = text.replace('\u{ad}', "");
    let text = match form {
        Form::Typed => text,
        Form::Straight => text.replace('’', "'").replace('‘', "`"),
        Form::Joined => text.replace(' ', "\u{a0}"),
        Form::Bracketed => {
            let text = text.replace('(', "-lrb-").replace(')', "-rrb-");
            text.replace(' ', "\u{a0}")
        }
        Form::Entity => match text.to_lowercase().as_str() {
            "&lt;" => "<".to_owned(),
            "&gt;" => ">".to_owned(),
            "&quot;" | "&nbsp;" | "&mdash;" | "&ndash;" => return None,
            lower => lower.replace("&amp;", "&"),
        },
        Form::Marks if text.starts_with(['?', '!']) && text.len() > 1 => text,
        Form::Marks => return None,
    };
    (!text.is_empty()).then(|| text.to_lowercase())
}

/// The token of a single character that is part of no word.
fn sign(sign: char) -> Option<String> {
    // The official tool passes over what lies beyond the basic plane, so over most pictograms.
    let is_nothing = is_space(sign)
        || sign > '\u{ffff}'
        || sign.is_control()
        || matches!(
            sign,
            '\u{ad}' | '\u{200c}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{fffd}'
        )
        || DROPPED.contains(sign);
    if is_nothing {
        return None;
    }
    let typed = sign.to_string();
    let named = NAMED.iter().find(|(from, _)| *from == typed);
    Some(named.map_or_else(|| typed.to_lowercase(), |(_, name)| (*name).to_owned()))
}

fn is_space(sign: char) -> bool {
    sign.is_whitespace() || matches!(sign, '\u{200b}' | '\u{feff}')
}
