//! Which engine a page is of. Pure.

use serde::Deserialize;

use crate::engine::{self, Profile};
use crate::metrics::page::{Page, PageError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recognised {
    /// The engine.
    pub engine: &'static Profile,
    /// The models it serves, as far as it tells.
    pub models: Vec<String>,
}

/// The engine that this metrics page is of.
/// Errors: What the page is instead.
pub(crate) fn recognise(body: &[u8]) -> Result<Recognised, PageError> {
    let page = Page::parse(body, None)?;
    Ok(Recognised { engine: page.engine, models: page.models.into_iter().collect() })
}

/// What llama.cpp's `/props` tells.
#[derive(Debug, Deserialize)]
struct Props {
    build_info: Option<String>,
    default_generation_settings: Option<serde::de::IgnoredAny>,
    model_alias: Option<String>,
    model_path: Option<String>,
}

/// llama.cpp by its `/props`, which, other than its metrics page, neither wakes it nor keeps it awake.
pub(crate) fn recognise_props(body: &[u8]) -> Option<Recognised> {
    let props: Props = serde_json::from_slice(body).ok()?;
    if props.build_info.is_none() && props.default_generation_settings.is_none() {
        return None;
    }
    let models = props.model_alias.filter(|alias| !alias.is_empty()).or(props.model_path);
    Some(Recognised { engine: engine::named("llama.cpp")?, models: models.into_iter().collect() })
}

/// Does this answer to `/health` have the form of an engine whose metrics page may be work to it?
///
/// llama.cpp answers `{"status": "ok"}`; vLLM, SGLang and others answer nothing.
pub(crate) fn may_sleep(health: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Health {
        #[serde(rename = "status")]
        _status: String,
    }
    serde_json::from_slice::<Health>(health).is_ok()
}

/// What `/v1/models` tells.
#[derive(Debug, Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Debug, Deserialize)]
struct Model {
    id: String,
}

/// The models that `/v1/models` lists.
pub(crate) fn models(body: &[u8]) -> Vec<String> {
    let list = serde_json::from_slice::<Models>(body).map(|models| models.data).unwrap_or_default();
    list.into_iter().map(|model| model.id).filter(|id| !id.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_told_by_how_their_names_begin() {
        for (line, engine, models) in [
            (
                "vllm:num_requests_running{engine=\"0\",model_name=\"Qwen/Qwen2-7B\"} 0.0",
                "vLLM",
                vec!["Qwen/Qwen2-7B"],
            ),
            ("sglang:num_running_reqs{model_name=\"a/b\"} 0", "SGLang", vec!["a/b"]),
            ("llamacpp:requests_processing 0", "llama.cpp", vec![]),
            ("nv_trt_llm_request_metrics{model=\"m\",request_type=\"waiting\"} 0", "Triton", vec!["m"]),
        ] {
            let page = format!("# HELP python_info x\npython_info 1\n{line}\n");
            let found = recognise(page.as_bytes()).unwrap();
            assert_eq!(
                (found.engine.name(), found.models),
                (engine, models.into_iter().map(str::to_owned).collect())
            );
        }
        for other in
            ["", "<html>", "{}", "node_load1 0.5\n", "# sglang: is not here\n", "nv_inference_count 0\n"]
        {
            assert!(recognise(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn what_may_sleep_is_told_before_its_page_is_asked_for() {
        assert!(may_sleep(b"{\"status\": \"ok\"}") && may_sleep(b"{\"status\":\"ok\",\"slots_idle\":1}"));
        assert!(!may_sleep(b"") && !may_sleep(b"OK") && !may_sleep(b"{}"));
        let props = br#"{"default_generation_settings":{},"model_alias":"tiny","is_sleeping":true}"#;
        assert_eq!(recognise_props(props).map(|found| found.models), Some(vec!["tiny".to_owned()]));
        assert_eq!(recognise_props(b"{\"detail\":\"Not Found\"}"), None);
        assert_eq!(models(br#"{"object":"list","data":[{"id":"m"},{"id":""}]}"#), ["m"]);
        assert_eq!(models(b"nothing"), Vec::<String>::new());
    }
}
