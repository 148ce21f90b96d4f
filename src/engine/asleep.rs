//! Whether an engine sleeps: a question that does not wake it, and what its answer means.

use reqwest::Url;
use serde_json::Value;

/// A question in place of that for the page: a path, and where in its JSON answer stands whether the engine sleeps.
#[derive(Debug, PartialEq)]
pub(crate) struct Question {
    pub(super) path: String,
    /// Asked only where the page's URL names a model by this parameter, and about that model.
    pub(super) query: Option<String>,
    /// The list of models in the answer, and the key of an entry that holds the model's name.
    pub(super) list: Option<(String, String)>,
    /// The key, dots between levels, that tells.
    pub(super) key: String,
    /// Its values that mean sleep.
    pub(super) values: Vec<Value>,
}

impl Question {
    /// Is this the question about the page at this URL?
    pub(super) fn is_for(&self, page: &Url) -> bool {
        self.query.is_none() || self.model(page).is_some()
    }

    fn model(&self, page: &Url) -> Option<String> {
        let query = self.query.as_deref()?;
        page.query_pairs().find(|(key, _)| key == query).map(|(_, model)| model.into_owned())
    }

    /// Where it is asked.
    pub(crate) fn url(&self, page: &Url) -> Url {
        let mut url = page.clone();
        url.set_path(&self.path);
        url
    }

    /// Whether this answer says that the engine, or the model of that page, sleeps: then its page is left alone.
    pub(crate) fn is_yes(&self, page: &Url, status: u16, body: &[u8]) -> bool {
        let answer = (status == 200).then(|| serde_json::from_slice::<Value>(body).ok()).flatten();
        let told = answer
            .as_ref()
            .and_then(|answer| self.entry(page, answer))
            .and_then(|entry| at(entry, &self.key));
        told.is_some_and(|told| self.values.contains(told))
    }

    /// The part of an answer that is about this page.
    fn entry<'a>(&self, page: &Url, answer: &'a Value) -> Option<&'a Value> {
        let Some((list, id)) = &self.list else { return Some(answer) };
        let model = self.model(page)?;
        at(answer, list)?
            .as_array()?
            .iter()
            .find(|entry| at(entry, id).and_then(Value::as_str) == Some(&model))
    }
}

/// The value behind a key with dots between levels.
fn at<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(value, |value, key| value.get(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::named;

    const PROPS: &[u8] = br#"{"total_slots":4,"is_sleeping":false}"#;
    const PROPS_ASLEEP: &[u8] = br#"{"total_slots":4,"is_sleeping":true}"#;
    const MODELS: &[u8] = br#"{"object":"list","data":[
        {"id":"a","status":{"value":"loaded"}},
        {"id":"b","status":{"value":"sleeping"}},
        {"id":"c","status":{"value":"unloaded"}}]}"#;

    #[test]
    fn single_server_is_asked_at_props() {
        let page = Url::parse("http://h:1/metrics").unwrap();
        let question = named("llama.cpp").unwrap().sleep_question(&page).unwrap();
        assert_eq!(question.url(&page).as_str(), "http://h:1/props");
        assert!(question.is_yes(&page, 200, PROPS_ASLEEP));
        for (status, body) in [(200, PROPS), (503, PROPS_ASLEEP), (200, b"asleep".as_slice()), (200, b"")] {
            assert!(!question.is_yes(&page, status, body), "{status}");
        }
    }

    #[test]
    fn model_of_a_router_is_looked_up_in_its_list() {
        let llama = named("llama.cpp").unwrap();
        for (model, asleep) in [("a", false), ("b", true), ("c", true), ("none", false)] {
            let page = Url::parse(&format!("http://h:1/metrics?model={model}")).unwrap();
            let question = llama.sleep_question(&page).unwrap();
            assert_eq!(question.url(&page).path(), "/v1/models");
            assert_eq!(question.is_yes(&page, 200, MODELS), asleep, "{model}");
        }
    }
}
