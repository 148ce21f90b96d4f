//! gppm's paths, with the JSON that its clients read.

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::Api;
use super::answer::Trouble;
use super::guard::Trusted;
use super::v1::{given, whole};

/// A GET that changes something.
pub(super) const RELOAD: &str = "/reload_llamacpp_configs";

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/get_instances", get(instances))
        .route("/get_llamacpp_instances", get(names))
        .route("/get_llamacpp_subprocesses", get(subprocesses))
        .route("/get_llamacpp_configs", get(configs))
        .route(RELOAD, get(reload).post(reload))
        .route("/apply_llamacpp_configs", post(apply))
        .route("/enable_llamacpp_instance", post(enable))
        .route("/disable_llamacpp_instance", post(disable))
}

fn ok(message: impl Into<String>) -> Response {
    Json(json!({"status": "OK", "message": message.into()})).into_response()
}

async fn instances(State(api): State<Api>) -> Response {
    let visible = |name: &str| {
        let (entry, _) = api.fleet.entry(name)?;
        entry.instance.env.get("CUDA_VISIBLE_DEVICES").cloned()
    };
    let list: Vec<Value> = api
        .fleet
        .statuses()
        .iter()
        .map(|status| json!({"name": status.name, "pid": status.pid, "cvd": visible(&status.name)}))
        .collect();
    Json(json!({ "instances": list })).into_response()
}

async fn names(State(api): State<Api>) -> Response {
    let statuses = api.fleet.statuses();
    let names: Vec<&str> =
        statuses.iter().filter(|status| status.enabled).map(|status| status.name.as_str()).collect();
    Json(json!({ "llamacpp_instances": names })).into_response()
}

async fn subprocesses(State(api): State<Api>) -> Response {
    let mut by_pid = Map::new();
    for status in api.fleet.statuses() {
        if let (Some(pid), Some((entry, _))) = (status.pid, api.fleet.entry(&status.name)) {
            let process = json!({"pid": pid, "args": entry.instance.command, "returncode": null});
            by_pid.insert(pid.to_string(), json!([process]));
        }
    }
    Json(Value::Object(by_pid)).into_response()
}

async fn configs(State(api): State<Api>, Extension(Trusted(trusted)): Extension<Trusted>) -> Response {
    let list: Vec<Value> = api.fleet.entries().list.iter().map(|entry| entry.to_json(trusted)).collect();
    Json(list).into_response()
}

async fn reload(State(api): State<Api>) -> Response {
    match api.fleet.reload().await {
        Ok(_) => ok("the instance files were read again"),
        Err(error) => Trouble::from(error).into_gppm(),
    }
}

async fn apply(State(api): State<Api>, request: Request<Body>) -> Response {
    let given = match given(request).await {
        Ok(given) => given,
        Err(trouble) => return trouble.into_gppm(),
    };
    match api.fleet.apply(given).await {
        Ok(_) => ok("the entries were applied"),
        Err(error) => Trouble::from(error).into_gppm(),
    }
}

/// The name that a request gives as `{"name": NAME}`.
async fn named(body: Body) -> Result<String, Trouble> {
    let bytes = whole(body).await?;
    let json: Option<Value> = serde_json::from_slice(&bytes).ok();
    let name = json.as_ref().and_then(|json| json.get("name")).and_then(Value::as_str);
    name.map(ToOwned::to_owned).ok_or_else(|| {
        Trouble::new(StatusCode::BAD_REQUEST, "the request must be JSON like {\"name\": \"NAME\"}")
    })
}

async fn enable(State(api): State<Api>, body: Body) -> Response {
    let done = async {
        let name = named(body).await?;
        api.fleet.supervisor().enable(&name).await?;
        Ok::<_, Trouble>(format!("{name} is enabled"))
    };
    done.await.map_or_else(Trouble::into_gppm, ok)
}

async fn disable(State(api): State<Api>, body: Body) -> Response {
    let done = async {
        let name = named(body).await?;
        api.fleet.supervisor().disable(&name).await?;
        Ok::<_, Trouble>(format!("{name} is disabled"))
    };
    done.await.map_or_else(Trouble::into_gppm, ok)
}
