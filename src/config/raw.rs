//! The file's shape: one field per key, nothing judged yet.
//!
//! Owns the list of keys that exist: the doc comments say what each means, `KEYS` of the example files and of the error
//! messages come from these very structs. It decides neither defaults nor validity, and it keeps going where serde would
//! stop: a value of the wrong type is carried to the validation, so that several mistakes are reported at once.

use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

/// The whole file.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) role: Option<Field<String>>,
    pub(super) interface: Option<Spanned<RawInterface>>,
    pub(super) health: Option<Spanned<RawHealth>>,
    #[serde(default)]
    pub(super) backend: Vec<Spanned<RawPeer>>,
    #[serde(default)]
    pub(super) proxy: Vec<Spanned<RawPeer>>,
}

/// `[interface]`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawInterface {
    pub(super) name: Option<Field<String>>,
    pub(super) addresses: Option<Field<List>>,
    pub(super) listen: Option<Field<RawListen>>,
    pub(super) private_key_file: Option<Field<String>>,
    pub(super) previous_private_key_file: Option<Field<String>>,
    pub(super) mtu: Option<Field<NumberOrWord>>,
    pub(super) fwmark: Option<Field<i64>>,
    pub(super) dscp: Option<Field<NumberOrWord>>,
    pub(super) device: Option<Field<String>>,
    pub(super) workers: Option<Field<NumberOrWord>>,
    pub(super) pin_workers: Option<Field<bool>>,
    pub(super) busy_poll: Option<Field<bool>>,
    pub(super) suite: Option<Field<String>>,
    pub(super) suites: Option<Field<List>>,
    pub(super) expose: Option<Field<List>>,
    pub(super) refuse: Option<Field<String>>,
    pub(super) control_socket: Option<Field<String>>,
    pub(super) drain_timeout: Option<Field<i64>>,
    pub(super) sandbox: Option<Field<FlagOrWord>>,
    pub(super) drop_capabilities: Option<Field<bool>>,
    pub(super) fail_closed: Option<Field<bool>>,
    pub(super) open: Option<Field<List>>,
}

/// `[health]`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHealth {
    pub(super) agent_check: Option<Field<RawServe>>,
    pub(super) http: Option<Field<RawServe>>,
    pub(super) degraded_weight: Option<Field<i64>>,
}

/// `[[backend]]` or `[[proxy]]`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPeer {
    pub(super) name: Option<Field<String>>,
    pub(super) public_key: Option<Field<String>>,
    pub(super) next_public_key: Option<Field<String>>,
    pub(super) endpoint: Option<Field<OneOrMore>>,
    pub(super) addresses: Option<Field<List>>,
    pub(super) allowed_ips: Option<Field<List>>,
    pub(super) preshared_key_file: Option<Field<String>>,
    pub(super) persistent_keepalive: Option<Field<i64>>,
    pub(super) suite: Option<Field<String>>,
    pub(super) expose: Option<Field<List>>,
}

/// A list of strings, each with its place in the file.
pub(super) type List = Vec<Spanned<String>>;

/// A string, or a list of them.
pub(super) struct OneOrMore(pub(super) List);

/// `workers` and `dscp`: a number, or a word.
pub(super) enum NumberOrWord {
    Number(i64),
    Word(String),
}

/// `sandbox`: true or false, or a word.
pub(super) enum FlagOrWord {
    Flag(bool),
    Word(String),
}

/// `listen`: a port for both families, or addresses with ports.
pub(super) enum RawListen {
    Port(i64),
    Addresses(List),
}

/// `agent_check` and `http`: an address with its port, several, or a word.
pub(super) enum RawServe {
    Word(String),
    List(List),
}

/// A key's value with its place in the file, right or of the wrong type.
pub(super) struct Field<T> {
    pub(super) span: Range<usize>,
    pub(super) value: Result<T, WrongType>,
}

/// A value that is not of its key's type.
pub(super) struct WrongType {
    pub(super) span: Range<usize>,
    /// What stands there, in TOML's words: "an integer".
    pub(super) found: &'static str,
    /// What should stand there: "a string".
    pub(super) expected: &'static str,
}

impl<'de, T: FromValue> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let span = spanned.span();
        let value = T::from_value(span.clone(), spanned.into_inner());
        Ok(Self { span, value })
    }
}

/// How a key's type is made of a TOML value.
pub(super) trait FromValue: Sized {
    /// `value` stands at `span`.
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType>;
}

impl FromValue for String {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(other.instead_of("a string", span)),
        }
    }
}

impl FromValue for i64 {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        match value {
            Value::Integer(number) => Ok(number),
            other => Err(other.instead_of("a whole number", span)),
        }
    }
}

impl FromValue for List {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        let Value::Array(items) = value else { return Err(value.instead_of("a list of strings", span)) };
        items
            .into_iter()
            .map(|item| {
                let span = item.span();
                String::from_value(span.clone(), item.into_inner()).map(|text| Spanned::new(span, text))
            })
            .collect()
    }
}

impl FromValue for OneOrMore {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        match value {
            Value::String(text) => Ok(Self(vec![Spanned::new(span, text)])),
            Value::Array(_) => List::from_value(span, value).map(Self),
            other => Err(other.instead_of("a string, or a list of strings", span)),
        }
    }
}

impl FromValue for NumberOrWord {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        match value {
            Value::Integer(number) => Ok(Self::Number(number)),
            Value::String(word) => Ok(Self::Word(word)),
            other => Err(other.instead_of("a number, or a word in quotes", span)),
        }
    }
}

impl FromValue for FlagOrWord {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        match value {
            Value::Boolean(flag) => Ok(Self::Flag(flag)),
            Value::String(word) => Ok(Self::Word(word)),
            other => Err(other.instead_of("true, false or a word in quotes", span)),
        }
    }
}

impl FromValue for bool {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        match value {
            Value::Boolean(value) => Ok(value),
            other => Err(other.instead_of("true or false", span)),
        }
    }
}

impl FromValue for RawListen {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        match value {
            Value::Integer(port) => Ok(Self::Port(port)),
            Value::Array(_) => List::from_value(span, value).map(Self::Addresses),
            other => Err(other.instead_of("a list of strings, or a port", span)),
        }
    }
}

impl FromValue for RawServe {
    fn from_value(span: Range<usize>, value: Value) -> Result<Self, WrongType> {
        match value {
            Value::String(word) => Ok(Self::Word(word)),
            Value::Array(_) => List::from_value(span, value).map(Self::List),
            other => Err(other.instead_of("an address with its port, or a list of them", span)),
        }
    }
}

/// Any TOML value, as far as a key's type needs to know it.
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float,
    Boolean(bool),
    Array(Vec<Spanned<Value>>),
    /// A table or a date.
    Table,
}

impl Value {
    fn instead_of(&self, expected: &'static str, span: Range<usize>) -> WrongType {
        let found = match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "a number",
            Self::Float => "a number with a decimal point",
            Self::Boolean(_) => "true or false",
            Self::Array(_) => "a list",
            Self::Table => "a table or a date",
        };
        WrongType { span, found, expected }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a TOML value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        // TOML numbers that only fit 64 unsigned bits are past every range here: keep them so.
        Ok(Value::Integer(i64::try_from(number).unwrap_or(i64::MAX)))
    }

    fn visit_i128<E: de::Error>(self, number: i128) -> Result<Value, E> {
        Ok(Value::Integer(if number < 0 { i64::MIN } else { i64::MAX }))
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Value, E> {
        Ok(Value::Integer(i64::MAX))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Float)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Table)
    }
}

/// The keys of a table, as serde knows them from the struct: a field cannot be added without being listed.
pub(super) fn keys_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    match T::deserialize(FieldNames) {
        Err(Fields(fields)) => fields,
        Ok(_) => unreachable!("FieldNames never deserializes a value"),
    }
}

/// Answers every request for a value with the names of the fields that were asked for.
struct FieldNames;

#[derive(Debug)]
struct Fields(&'static [&'static str]);

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Fields {}

impl de::Error for Fields {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for FieldNames {
    type Error = Fields;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fields> {
        Err(Fields(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fields> {
        Err(Fields(fields))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_the_structs() {
        assert_eq!(keys_of::<RawConfig>(), ["role", "interface", "health", "backend", "proxy"]);
        assert!(keys_of::<RawPeer>().contains(&"persistent_keepalive"));
    }

    #[test]
    fn a_wrong_type_does_not_hide_the_rest() {
        let raw: RawInterface = toml::from_str("name = 3\nmtu = 1400\naddresses = [\"a\", 5]").unwrap();
        assert!(matches!(raw.mtu.unwrap().value, Ok(NumberOrWord::Number(1400))));
        let name = raw.name.unwrap().value.err().unwrap();
        assert_eq!((name.found, name.expected, name.span), ("a number", "a string", 7..8));
        let addresses = raw.addresses.unwrap().value.err().unwrap();
        assert_eq!((addresses.found, addresses.span), ("a number", 38..39));
    }

    #[test]
    fn every_kind_of_toml_value_has_a_word() {
        for value in ["1.5", "true", "[]", "{ a = 1 }", "1979-05-27", "99999999999999999999"] {
            let parsed = toml::from_str::<RawInterface>(&format!("name = {value}"));
            match parsed {
                Ok(raw) => assert!(raw.name.unwrap().value.is_err(), "{value}"),
                Err(error) => panic!("{value}: {error}"),
            }
        }
    }
}
