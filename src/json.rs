//! JSON as this crate needs it: the canonical form of a document, and the value at a pointer.
//!
//! `serde_json` reads, but does not interpret: numbers keep their text, which they would otherwise
//! lose to 64 bits (or to a feature that changes them for the whole program), and of two members
//! with one name both are seen.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Bytes that are equal exactly if two documents are equal: whatever the order of the members, the
/// white space, the escapes in strings and the spelling of numbers.
///
/// They are read by no one, only hashed, so that they need not be text: each value has a mark, a
/// string its length, and members are in the order of their names.
///
/// `None` for what is not JSON, is nested deeper than 127 levels, has a name twice in one object,
/// half a surrogate pair in a string, or a number with an exponent beyond 64 bits.
pub(crate) fn canonical(document: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(document.len());
    push_value(&mut out, Value::read(document)?)?;
    Some(out)
}

/// What is at a pointer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// No value or `null`, or the document is not JSON.
    Nothing,
    String(Cow<'a, str>),
    NotAString,
    /// A name on the way occurs twice.
    Ambiguous,
}

/// The value at a path of reference tokens (RFC 6901), which are unescaped.
pub(crate) fn find<'a>(document: &'a [u8], path: &[String]) -> Found<'a> {
    let mut value = Value::read(document);
    for token in path {
        value = match value {
            Some(Value::Array(items)) => match token.parse::<usize>() {
                // Without leading zeros or a sign, or it is no index.
                Ok(index) if index.to_string() == *token => items.into_iter().nth(index),
                _ => None,
            },
            Some(Value::Object(members)) => {
                let mut named = members.into_iter().filter(|(name, _)| name == token);
                let first = named.next();
                if named.next().is_some() {
                    return Found::Ambiguous;
                }
                first.map(|(_, value)| value)
            }
            Some(Value::Scalar(_)) | None => None,
        };
    }
    match value {
        None | Some(Value::Scalar("null")) => Found::Nothing,
        Some(Value::Scalar(text)) if text.starts_with('"') => {
            string(text).map_or(Found::Nothing, Found::String)
        }
        Some(_) => Found::NotAString,
    }
}

enum Value<'a> {
    Array(Vec<Self>),
    /// Its members as they come.
    Object(Vec<(Cow<'a, str>, Self)>),
    /// Any other value, as its text.
    Scalar(&'a str),
}

impl<'a> Value<'a> {
    fn read(document: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(document).ok()?;
        let mut reader = serde_json::Deserializer::from_str(text);
        let value = Ahead(text).deserialize(&mut reader).ok()?;
        reader.end().ok()?;
        Some(value)
    }
}

/// The text that was not read yet. A value can be had as its text or as what is in it, and which
/// of the two has to be said before it is read.
struct Ahead<'a>(&'a str);

impl<'a> Ahead<'a> {
    /// Goes to the next name or value. Its reader has passed, and checked, what is before it.
    fn advance(&mut self) {
        let between = [' ', '\t', '\n', '\r', ',', ':', ']', '}'];
        self.0 = self.0.trim_start_matches(between);
    }

    /// Passes what was read as its text.
    fn pass<E: Error>(&mut self, read: &'a RawValue) -> Result<&'a str, E> {
        self.advance();
        let text = read.get();
        let rest = self.0.strip_prefix(text);
        self.0 = rest.ok_or_else(|| E::custom("read elsewhere"))?;
        Ok(text)
    }
}

impl<'a> DeserializeSeed<'a> for &mut Ahead<'a> {
    type Value = Value<'a>;

    fn deserialize<D: Deserializer<'a>>(self, value: D) -> Result<Value<'a>, D::Error> {
        self.advance();
        match self.0.strip_prefix(['[', '{']) {
            Some(inside) => {
                self.0 = inside;
                value.deserialize_any(self)
            }
            None => self
                .pass(Deserialize::deserialize(value)?)
                .map(Value::Scalar),
        }
    }
}

impl<'a> Visitor<'a> for &mut Ahead<'a> {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array or object")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut access: A) -> Result<Value<'a>, A::Error> {
        // With room for one: a vector that grows from nothing has room for four, and a document
        // can be all brackets.
        let mut items = Vec::from_iter(access.next_element_seed(&mut *self)?);
        while let Some(item) = access.next_element_seed(&mut *self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut access: A) -> Result<Value<'a>, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = access.next_key()? {
            let name = string(self.pass(name)?).ok_or_else(|| Error::custom("half a character"))?;
            members.push((name, access.next_value_seed(&mut *self)?));
        }
        Ok(Value::Object(members))
    }
}

/// A string without its quotes and escapes. `None` if there is half a surrogate pair among them.
fn string(text: &str) -> Option<Cow<'_, str>> {
    match text.contains('\\') {
        true => serde_json::from_str(text).ok().map(Cow::Owned),
        false => text.get(1..text.len() - 1).map(Cow::Borrowed),
    }
}

fn push_value(out: &mut Vec<u8>, value: Value<'_>) -> Option<()> {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for item in items {
                push_value(out, item)?;
            }
            out.push(b']');
        }
        Value::Object(mut members) => {
            members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            if !members.is_sorted_by(|(one, _), (next, _)| one < next) {
                return None;
            }
            out.push(b'{');
            for (name, member) in members {
                push_string(out, &name)?;
                push_value(out, member)?;
            }
            out.push(b'}');
        }
        Value::Scalar(text) => match *text.as_bytes().first()? {
            b'"' => push_string(out, &string(text)?)?,
            b'-' | b'0'..=b'9' => push_number(out, text)?,
            // Of `true`, `false` and `null`.
            mark => out.push(mark),
        },
    }
    Some(())
}

fn push_string(out: &mut Vec<u8>, text: &str) -> Option<()> {
    out.push(b's');
    out.extend(u32::try_from(text.len()).ok()?.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    Some(())
}

/// The exact decimal value: sign, digits without zeros at either end, power of ten.
fn push_number(out: &mut Vec<u8>, number: &str) -> Option<()> {
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = whole.bytes().chain(fraction.bytes());
    let zeros_after = digits.clone().rev().take_while(|&b| b == b'0').count();
    let zeros_before = digits.clone().take_while(|&b| b == b'0').count();
    let length = (whole.len() + fraction.len()).saturating_sub(zeros_before + zeros_after);
    out.push(b'0');
    // Zero has no sign and no exponent.
    if length > 0 {
        let exponent = exponent
            .checked_sub_unsigned(fraction.len() as u64)?
            .checked_add_unsigned(zeros_after as u64)?;
        if negative {
            out.push(b'-');
        }
        out.extend(digits.skip(zeros_before).take(length));
        if exponent != 0 {
            out.push(b'e');
            out.extend(exponent.to_be_bytes());
        }
    }
    out.push(b';');
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn same(one: &str, other: &str) -> bool {
        let of = |text: &str| {
            canonical(text.as_bytes()).unwrap_or_else(|| panic!("not canonical: {text}"))
        };
        of(one) == of(other)
    }

    /// S24: order of members, white space, escapes and the spelling of numbers do not matter.
    #[test]
    fn s24_spelling_does_not_matter() {
        for (one, other) in [
            (
                r#"{"a":1,"b":[true,null]}"#,
                " { \"b\" : [ true , null ] ,\n\t\"a\" : 1 }\r\n",
            ),
            (
                r#"{"b":{"d":1,"c":2},"a":0}"#,
                r#"{"a":0,"b":{"c":2,"d":1}}"#,
            ),
            (r#""\u0061\/\n""#, r#""a/\u000A""#),
            (r#""\ud83d\ude00""#, "\"\u{1f600}\""),
            (r#"{"\u0061":1}"#, r#"{"a":1}"#),
            ("1.0", "1"),
            ("1e0", "1"),
            ("10e-1", "1"),
            ("0.10E+1", "1.000"),
            ("100", "1e2"),
            ("-0.0e7", "0"),
            ("-1.50", "-15e-1"),
            ("1e9223372036854775807", "1.0e+009223372036854775807"),
        ] {
            assert!(same(one, other), "{one} {other}");
        }
    }

    /// S24, U34: different values are different, also beyond what 64 bits tell apart.
    #[test]
    fn s24_u34_values_matter() {
        let all = [
            "0",
            "1",
            "-1",
            "10",
            "0.1",
            "1e2",
            "12",
            "\"\"",
            "\"1\"",
            "\"a\"",
            "[]",
            "{}",
            "[[]]",
            "[1]",
            "[1,2]",
            "[12]",
            "[2,1]",
            "[[1],2]",
            "[[1,2]]",
            "[\"a\",\"b\"]",
            "[\"ab\"]",
            "true",
            "false",
            "null",
            "[null]",
            "\"true\"",
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":{}}"#,
            r#"{"a":[]}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"a":{"b":1},"c":1}"#,
            r#"{"a":{"b":1,"c":1}}"#,
            r#"{"A":1}"#,
            r#"{"a ":1}"#,
            "9007199254740992",
            "9007199254740993",
            "0.1000000000000000055511151231257827",
            "1e400",
            "1e401",
            "1e-400",
        ];
        for (n, one) in all.iter().enumerate() {
            for other in &all[n + 1..] {
                assert!(!same(one, other), "{one} {other}");
            }
        }
    }

    #[test]
    fn what_is_ambiguous_or_no_json_has_no_canonical_form() {
        let deep = |depth| "[".repeat(depth) + &"]".repeat(depth);
        let deep_object = |depth| "{\"a\":".repeat(depth) + "0" + &"}".repeat(depth);
        assert!(canonical(deep(127).as_bytes()).is_some());
        assert!(canonical(deep_object(127).as_bytes()).is_some());
        for bad in [
            &deep(128),
            &deep_object(128),
            &"[".repeat(1 << 20),
            &"{\"a\":".repeat(1 << 20),
            "",
            " ",
            "{",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[,[1]]",
            "[[1],]",
            "[[1]][2]",
            "[1]]",
            "{\"a\":,[1]}",
            "{\"a\",[1]}",
            "{[1]:1}",
            "[1 2]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:1}",
            "[}",
            "1 1",
            "01",
            "-",
            "+1",
            ".5",
            "1.",
            "1e",
            "1e+",
            "0x1",
            "--1",
            "tru",
            "truee",
            "nul",
            "True",
            "NaN",
            "\"",
            "\"\\\"",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u+123\"",
            "\"\\ud800\"",
            "{\"\\ud800\":1}",
            "\"\\ud800\\u0061\"",
            "\"\\udc00\"",
            "\"\\u00é\"",
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"\u0061":1}"#,
            "1e9223372036854775808",
            "0.1e-9223372036854775808",
            "// 1",
            "\u{feff}1",
        ] {
            let shown: String = bad.chars().take(40).collect();
            assert_eq!(canonical(bad.as_bytes()), None, "{shown}");
        }
        assert_eq!(canonical(b"\"\xff\""), None);
    }

    fn at<'a>(document: &'a str, path: &[&str]) -> Found<'a> {
        let path: Vec<_> = path.iter().map(|token| (*token).to_owned()).collect();
        find(document.as_bytes(), &path)
    }

    /// S01: the key is found in the body.
    #[test]
    fn s01_a_value_is_found_by_its_path() {
        let found = |text: &'static str| Found::String(text.into());
        let document = r#"{"x":[1,{"k":"v"}],"idempotency_key":"abc-123","n":null,"":"e","k":1}"#;
        assert_eq!(at(document, &["idempotency_key"]), found("abc-123"));
        assert_eq!(at(document, &["x", "1", "k"]), found("v"));
        assert_eq!(at(document, &[""]), found("e"));
        assert_eq!(at("\"s\"", &[]), found("s"));
        assert_eq!(at(r#"{"k":"\u0061"}"#, &["k"]), found("a"));
        for absent in [
            &["n"][..],
            &["y"],
            &["x", "2"],
            &["x", "01"],
            &["x", "-"],
            &["k", "z"],
        ] {
            assert_eq!(at(document, absent), Found::Nothing, "{absent:?}");
        }
        for other in [&["k"][..], &["x"], &["x", "1"], &["x", "0"]] {
            assert_eq!(at(document, other), Found::NotAString, "{other:?}");
        }
    }

    #[test]
    fn a_doubtful_value_is_not_found() {
        for twice in [
            r#"{"a":{"k":"1"},"a":{"k":"2"}}"#,
            r#"{"a":{"k":"1"},"a":null}"#,
            r#"{"a":{},"a":{"k":"1"}}"#,
            r#"{"a":{"k":"1","\u006b":"1"}}"#,
            r#"{"a":{"k":1,"k":null},"b":1,"a":{"k":"3"}}"#,
        ] {
            assert_eq!(at(twice, &["a", "k"]), Found::Ambiguous, "{twice}");
        }
        assert_eq!(
            at(r#"{"b":1,"b":2,"a":{"k":"1"}}"#, &["a", "k"]),
            Found::String("1".into())
        );
        for no_json in [
            r#"{"a":"1"} x"#,
            r#"{"a":"1""#,
            r#"{"a":"1","b":}"#,
            "",
            "a=1",
        ] {
            assert_eq!(at(no_json, &["a"]), Found::Nothing, "{no_json}");
        }
    }

    /// A number with its spellings: digits, and where the point stands.
    fn number() -> impl Strategy<Value = (bool, u64, i8)> {
        (any::<bool>(), any::<u64>(), -30_i8..30)
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,3}", inner, 0..6)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    fn roll(dice: &mut u64) -> usize {
        *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*dice >> 60) as usize
    }

    /// Another spelling of the same document, chosen by the bits of `dice`.
    fn respell(value: &Value, dice: &mut u64, out: &mut String) {
        let space = |n: usize| [" ", "", "\n\t", "\r "][n & 3];
        out.push_str(space(roll(dice)));
        match value {
            Value::Array(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        out.push(',');
                    }
                    respell(item, dice, out);
                }
                out.push(']');
            }
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_by_cached_key(|_| roll(dice));
                out.push('{');
                for (n, (name, member)) in members.into_iter().enumerate() {
                    if n > 0 {
                        out.push(',');
                    }
                    respell(&Value::from(name.as_str()), dice, out);
                    out.push(':');
                    respell(member, dice, out);
                }
                out.push('}');
            }
            Value::String(text) => {
                out.push('"');
                for c in text.chars() {
                    match roll(dice) & 3 {
                        0 if c >= ' ' && c != '"' && c != '\\' => out.push(c),
                        1 => {
                            let quoted = Value::from(c.to_string()).to_string();
                            out.push_str(&quoted[1..quoted.len() - 1]);
                        }
                        _ => {
                            for unit in c.encode_utf16(&mut [0; 2]) {
                                out.push_str(&format!("\\u{unit:04x}"));
                            }
                        }
                    }
                }
                out.push('"');
            }
            Value::Number(number) => {
                let zeros = roll(dice);
                out.push_str(&format!("{number}{}e-{zeros}", "0".repeat(zeros)));
            }
            Value::Null | Value::Bool(_) => out.push_str(&value.to_string()),
        }
        out.push_str(space(roll(dice)));
    }

    proptest! {
        /// S24: any respelling of any document has the same canonical form.
        #[test]
        fn s24_respelling_changes_nothing(value in json(), mut dice in any::<u64>()) {
            let mut other = String::new();
            respell(&value, &mut dice, &mut other);
            prop_assert_eq!(&serde_json::from_str::<Value>(&value.to_string()).unwrap(), &value);
            prop_assert!(same(&value.to_string(), &other), "{} {}", value, other);
        }

        /// S24, U34: different documents have different canonical forms.
        #[test]
        fn s24_u34_different_documents_differ(one in json(), other in json()) {
            prop_assert_eq!(same(&one.to_string(), &other.to_string()), one == other);
        }

        /// Numbers are equal exactly if digits and scale are, however they are spelled.
        #[test]
        fn s24_numbers_are_exact((one, other) in (number(), number()), shift in 0_u8..20) {
            let spell = |(negative, digits, scale): (bool, u64, i8)| {
                format!("{}{digits}e{scale}", if negative { "-" } else { "" })
            };
            let shifted = |(negative, digits, scale): (bool, u64, i8)| {
                let zeros = "0".repeat(shift.into());
                let sign = if negative { "-" } else { "" };
                format!("{sign}0.{zeros}{digits}{zeros}E{:+}", {
                    i32::from(scale) + i32::from(shift) + digits.to_string().len() as i32
                })
            };
            prop_assert!(same(&spell(one), &shifted(one)));
            let near = (one.0, one.1 ^ 1, one.2);
            prop_assert!(!same(&spell(one), &spell(near)));
            let reduce = |(negative, mut digits, mut scale): (bool, u64, i8)| {
                while digits != 0 && digits % 10 == 0 {
                    digits /= 10;
                    scale += 1;
                }
                if digits == 0 { (false, 0, 0) } else { (negative, digits, scale) }
            };
            prop_assert_eq!(same(&spell(one), &spell(other)), reduce(one) == reduce(other));
        }

        /// S24, U34: with any one character changed, a document is another one, the same or none,
        /// as `serde_json` has it.
        #[test]
        fn s24_u34_one_character_decides(
            value in json(),
            at in any::<prop::sample::Index>(),
            by in "[\\[\\]{}:,\"\\\\ 10e.-]?",
        ) {
            let mut text = value.to_string();
            let original = canonical(text.as_bytes());
            let (begin, replaced) = *at.get(&text.char_indices().collect::<Vec<_>>());
            text.replace_range(begin..begin + replaced.len_utf8(), &by);
            match (canonical(text.as_bytes()), serde_json::from_str::<Value>(&text)) {
                (Some(ours), Ok(theirs)) => {
                    prop_assert_eq!(Some(ours) == original, theirs == value, "{}", text);
                }
                (Some(_), Err(error)) => {
                    prop_assert!(error.to_string().contains("out of range"), "{}", error);
                }
                // Two names became one.
                (None, Ok(_)) => prop_assert!(text.contains('{'), "{}", text),
                (None, Err(_)) => {}
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            text in "\\PC{0,30}|[\\[{\\\\\"u0é,:]{0,30}",
            bytes in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let path = ["u".to_owned()];
            for document in [text.as_bytes(), &bytes] {
                let _ = (canonical(document), find(document, &path));
            }
        }

        /// What this reader takes is what `serde_json` takes, but for numbers beyond its range,
        /// and both see the same value at a pointer.
        #[test]
        fn any_text_is_read_as_serde_json_reads_it(
            text in "[\\[\\]{}:,\"\\\\ntrue0-9.eE+u -]{0,24}",
        ) {
            let theirs = serde_json::from_str::<Value>(&text);
            let path = ["".to_owned()];
            match (&theirs, find(text.as_bytes(), &path)) {
                (Ok(value), Found::String(found)) => {
                    prop_assert_eq!(value.pointer("/").and_then(Value::as_str), Some(&*found));
                }
                (Ok(value), Found::Nothing) => {
                    prop_assert!(value.pointer("/").is_none_or(Value::is_null));
                }
                (Err(error), Found::String(_) | Found::NotAString) => {
                    prop_assert!(error.to_string().contains("out of range"), "{}", error);
                }
                _ => {}
            }
            if canonical(text.as_bytes()).is_some() && let Err(error) = theirs {
                prop_assert!(error.to_string().contains("out of range"), "{}", error);
            }
        }
    }
}
