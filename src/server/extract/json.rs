//! JSON as this crate needs it: the canonical form of a document, and the value at a pointer.
//!
//! A small strict reader of its own. A general parser reads numbers into 64 bits, and two amounts
//! would become one; keeping their text is, in `serde_json`, a feature that would change it for
//! the whole program. Nor does it tell that a name occurs twice, where a reader that takes the
//! first and one that takes the last see two documents.

use std::borrow::Cow;

/// Deeper documents are not read.
const DEEPEST: usize = 128;

/// Bytes that are equal exactly if two documents are equal: whatever the order of the members, the
/// white space, the escapes in strings and the spelling of numbers.
///
/// They are read by no one, only hashed, so that they need not be text: each value has a mark, a
/// string its length, and members are in the order of their names' bytes.
///
/// `None` for what is not JSON, is nested too deep, has a name twice in one object, or a number
/// with an exponent beyond 64 bits.
pub(super) fn canonical(document: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(document.len());
    let mut reader = Reader::new(document)?;
    reader.canonical(&mut out)?;
    reader.is_at_end().then_some(out)
}

/// What is at a pointer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// No value or `null`, or the document is not JSON.
    Nothing,
    String(Cow<'a, str>),
    NotAString,
    /// A name on the way occurs twice.
    Ambiguous,
}

/// The value at a path of reference tokens (RFC 6901), which are unescaped.
pub(super) fn find<'a>(document: &'a [u8], path: &[String]) -> Found<'a> {
    let mut found = Found::Nothing;
    let read = Reader::new(document).and_then(|mut reader| {
        reader.find(path, &mut found)?;
        reader.is_at_end().then_some(())
    });
    match read {
        Some(()) => found,
        None => Found::Nothing,
    }
}

/// Each method takes what it is named for and gives `None` where something else stands.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

/// A member of an object in the output: its name is at `name..value`, its value at `value..end`.
struct Member {
    begin: usize,
    value: usize,
    end: usize,
}

/// The mark of a string and its length.
const STRING_HEAD: usize = 5;

impl<'a> Reader<'a> {
    fn new(document: &'a [u8]) -> Option<Self> {
        Some(Self {
            text: std::str::from_utf8(document).ok()?,
            at: 0,
            depth: 0,
        })
    }

    fn canonical(&mut self, out: &mut Vec<u8>) -> Option<()> {
        match self.peek()? {
            b'{' => {
                out.push(b'{');
                let start = out.len();
                let mut members = Vec::new();
                self.object(|reader, name| {
                    let begin = out.len();
                    push_string(out, &name)?;
                    let value = out.len();
                    reader.canonical(out)?;
                    members.push(Member {
                        begin,
                        value,
                        end: out.len(),
                    });
                    Some(())
                })?;
                sort(out, start, members)?;
                out.push(b'}');
            }
            b'[' => {
                out.push(b'[');
                self.array(|reader| reader.canonical(out))?;
                out.push(b']');
            }
            b'"' => push_string(out, &self.string()?)?,
            b'-' | b'0'..=b'9' => push_number(out, self.number()?)?,
            mark => {
                self.word()?;
                out.push(mark);
            }
        }
        Some(())
    }

    fn find(&mut self, path: &[String], found: &mut Found<'a>) -> Option<()> {
        let Some((token, rest)) = path.split_first() else {
            *found = match self.peek()? {
                b'"' => Found::String(self.string()?),
                b'n' => {
                    self.skip()?;
                    Found::Nothing
                }
                _ => {
                    self.skip()?;
                    Found::NotAString
                }
            };
            return Some(());
        };
        match self.peek()? {
            b'{' => {
                let mut seen = false;
                self.object(|reader, name| {
                    if name != token.as_str() {
                        return reader.skip();
                    }
                    if std::mem::replace(&mut seen, true) {
                        *found = Found::Ambiguous;
                    }
                    match found {
                        Found::Ambiguous => reader.skip(),
                        _ => reader.find(rest, found),
                    }
                })
            }
            b'[' => {
                // Without leading zeros or a sign, or it is no index.
                let wanted = token
                    .parse::<usize>()
                    .ok()
                    .filter(|n| n.to_string() == *token);
                let mut index = 0;
                self.array(|reader| {
                    let here = wanted == Some(index);
                    index += 1;
                    match here {
                        true => reader.find(rest, found),
                        false => reader.skip(),
                    }
                })
            }
            _ => self.skip(),
        }
    }

    /// Takes any value.
    fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'{' => self.object(|reader, _| reader.skip()),
            b'[' => self.array(Self::skip),
            b'"' => self.string().map(drop),
            b'-' | b'0'..=b'9' => self.number().map(drop),
            _ => self.word(),
        }
    }

    fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Option<()>,
    ) -> Option<()> {
        self.nested(b'{', b'}', |reader| {
            reader.peek()?;
            let name = reader.string()?;
            reader.take(b':')?;
            member(reader, name)
        })
    }

    fn array(&mut self, element: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.nested(b'[', b']', element)
    }

    fn nested(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.take(open)?;
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        if self.peek()? != close {
            item(self)?;
            while self.peek()? == b',' {
                self.at += 1;
                item(self)?;
            }
        }
        self.depth -= 1;
        self.take(close)
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.next_byte()? {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    fn is_at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    fn next_byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn word(&mut self) -> Option<()> {
        let rest = &self.text[self.at..];
        let word = ["true", "false", "null"]
            .into_iter()
            .find(|word| rest.starts_with(word))?;
        self.at += word.len();
        Some(())
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        if self.next_byte()? != b'"' {
            return None;
        }
        self.at += 1;
        let mut unescaped: Option<String> = None;
        loop {
            let start = self.at;
            while !matches!(self.next_byte()?, b'"' | b'\\' | ..b' ') {
                self.at += 1;
            }
            let piece = &self.text[start..self.at];
            match self.next_byte()? {
                b'"' => {
                    self.at += 1;
                    return Some(match unescaped {
                        None => Cow::Borrowed(piece),
                        Some(text) => Cow::Owned(text + piece),
                    });
                }
                b'\\' => {
                    self.at += 1;
                    let text = unescaped.get_or_insert_default();
                    text.push_str(piece);
                    text.push(self.escape()?);
                }
                _ => return None,
            }
        }
    }

    /// What stands after a backslash.
    fn escape(&mut self) -> Option<char> {
        let escape = self.next_byte()?;
        self.at += 1;
        Some(match escape {
            b'"' | b'\\' | b'/' => escape.into(),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => match self.hex()? {
                high @ 0xd800..=0xdbff => {
                    if !self.text[self.at..].starts_with("\\u") {
                        return None;
                    }
                    self.at += 2;
                    let pair = [high, self.hex()?];
                    char::decode_utf16(pair).next()?.ok()?
                }
                unit => char::from_u32(unit.into())?,
            },
            _ => return None,
        })
    }

    fn hex(&mut self) -> Option<u16> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        // `from_str_radix` alone would take a sign.
        match digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => u16::from_str_radix(digits, 16).ok(),
            false => None,
        }
    }

    fn number(&mut self) -> Option<&'a str> {
        let start = self.at;
        if self.next_byte()? == b'-' {
            self.at += 1;
        }
        match self.next_byte()? {
            b'0' => self.at += 1,
            _ => self.digits()?,
        }
        if self.next_byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.next_byte(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.next_byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(&self.text[start..self.at])
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while matches!(self.next_byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

/// Brings the members of an object, which are at the end of `out` from `start` on, into the order
/// of their names. `None` if two names are equal.
fn sort(out: &mut Vec<u8>, start: usize, mut members: Vec<Member>) -> Option<()> {
    let name = |member: &Member| &out[member.begin + STRING_HEAD..member.value];
    if members.is_sorted_by(|one, next| name(one) < name(next)) {
        return Some(());
    }
    members.sort_unstable_by(|one, other| name(one).cmp(name(other)));
    if members
        .windows(2)
        .any(|pair| name(&pair[0]) == name(&pair[1]))
    {
        return None;
    }
    let unsorted = out.split_off(start);
    for member in members {
        out.extend_from_slice(&unsorted[member.begin - start..member.end - start]);
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
        assert!(canonical(deep(DEEPEST).as_bytes()).is_some());
        for bad in [
            &deep(DEEPEST + 1),
            &"[".repeat(1 << 20),
            &"{\"a\":".repeat(1 << 20),
            "",
            " ",
            "{",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
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
                if !members.is_empty() {
                    let by = roll(dice) % members.len();
                    members.rotate_left(by);
                    if roll(dice) > 7 {
                        members.reverse();
                    }
                }
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
                for unit in text.encode_utf16() {
                    out.push_str(&format!("\\u{unit:04x}"));
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
