//! One table under judgement: names its keys in messages and turns raw fields into checked values.
//!
//! Owns what is common to every key: missing, of the wrong type, refused by its own check. The checks are in `value`.

use std::ops::Range;

use toml::Spanned;

use super::error::Problems;
use super::raw::Field;

/// Why one value was refused, and what would be right.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) what: String,
    pub(super) remedy: String,
}

impl Refusal {
    pub(super) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// A table of the file while its keys are judged.
pub(super) struct Scope<'p, 't> {
    pub(super) problems: &'p mut Problems<'t>,
    /// How messages name the table: `interface`, `backend "app1"`.
    label: String,
    /// Where the table begins: the place of what is missing.
    header: Range<usize>,
    /// An example for each key, as TOML.
    examples: &'static [(&'static str, &'static str)],
}

impl<'p, 't> Scope<'p, 't> {
    pub(super) fn new(
        problems: &'p mut Problems<'t>,
        label: String,
        header: Range<usize>,
        examples: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self { problems, label, header, examples }
    }

    /// Notes that `key`, whose value stands at `span`, is refused.
    pub(super) fn refuse(&mut self, key: &str, span: Range<usize>, refusal: Refusal) {
        self.problems.push(span, format!("{}.{key}", self.label), refusal.what, refusal.remedy);
    }

    /// Notes that the table as a whole is refused, for want of `key`.
    pub(super) fn refuse_table(&mut self, key: &str, refusal: Refusal) {
        self.refuse(key, self.header.clone(), refusal);
    }

    /// The value of `key` if it is there and of the right type.
    pub(super) fn get<T>(&mut self, key: &str, field: Option<Field<T>>) -> Option<Spanned<T>> {
        let field = field?;
        match field.value {
            Ok(value) => Some(Spanned::new(field.span, value)),
            Err(wrong) => {
                let what = format!("this is {}, not {}", wrong.found, wrong.expected);
                self.refuse(key, wrong.span, Refusal::new(what, self.write_it_as(key)));
                None
            }
        }
    }

    /// As `get`, for a key that has no default.
    pub(super) fn get_required<T>(&mut self, key: &str, field: Option<Field<T>>) -> Option<Spanned<T>> {
        if field.is_none() {
            self.refuse_table(key, Refusal::new("this key is missing and has no default", self.write_it_as(key)));
        }
        self.get(key, field)
    }

    /// `value` as `check` makes it; `None` when it is absent or refused.
    pub(super) fn check<T, U>(
        &mut self,
        key: &str,
        value: Option<Spanned<T>>,
        check: impl FnOnce(&T) -> Result<U, Refusal>,
    ) -> Option<U> {
        let value = value?;
        check(value.get_ref()).map_err(|refusal| self.refuse(key, value.span(), refusal)).ok()
    }

    /// Each item of a list as `check` makes it, with its place; refused ones are left out.
    pub(super) fn check_each<U>(
        &mut self,
        key: &str,
        list: Option<Spanned<Vec<Spanned<String>>>>,
        check: impl Fn(&str) -> Result<U, Refusal>,
    ) -> Vec<Spanned<U>> {
        let items = list.map(Spanned::into_inner).unwrap_or_default();
        let mut checked = Vec::with_capacity(items.len());
        for item in items {
            match check(item.get_ref()) {
                Ok(value) => checked.push(Spanned::new(item.span(), value)),
                Err(refusal) => self.refuse(key, item.span(), refusal),
            }
        }
        checked
    }

    fn write_it_as(&self, key: &str) -> String {
        let example = self.examples.iter().find(|(known, _)| *known == key).map(|(_, example)| *example);
        let example = example.expect("every key has an example; a test compares the lists");
        format!("write it as `{key} = {example}`")
    }
}
