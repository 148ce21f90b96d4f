use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;
use crate::store::testing::at;

/// Fields of AGFT's file.
const AGFT: &str = "round timestamp datetime gpu_frequency_mhz energy_j ttft_avg tpot_avg e2e_avg \
    total_throughput_tps prefill_throughput_tps decode_throughput_tps edp_raw edp_normalized edp_baseline \
    edp_improvement_pct active_requests cache_usage_pct completed_requests_delta learning_phase reward alpha_value \
    ucb_confidence action_selection_method available_frequencies_count pruned_frequencies_count \
    frequency_exploration_count slo_violation ttft_limit tpot_limit has_queue prefill_throughput_feature \
    decode_throughput_feature packing_efficiency concurrency gpu_cache_usage cache_hit_rate";

/// Fields that are ours.
const NEW: &str = "schema_version gpu_memory_frequency_mhz asked_core_mhz read_core_mhz power_w window_s \
    waiting_requests state command decision_reason reward_used scrape_latency_s tick_lateness_s \
    baseline_power_w baseline_tpot_s energy_ratio energy_ratio_sd tpot_ratio tpot_ratio_sd \
    holdout_cycle holdout_slot holdout tpot_samples ttft_samples";

fn names(list: &str) -> BTreeSet<&str> {
    list.split_whitespace().collect()
}

fn as_map(record: &RoundRecord) -> Map<String, Value> {
    match serde_json::to_value(record).unwrap() {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

#[test]
fn every_field_of_agft_is_there_by_its_name_and_the_new_ones_beside_it() {
    let map = as_map(&RoundRecord::new(1, at(0)));
    let found: BTreeSet<&str> = map.keys().map(String::as_str).collect();
    assert_eq!(found, &names(AGFT) | &names(NEW));
}

#[test]
fn what_is_unknown_is_null_and_not_zero() {
    let map = as_map(&RoundRecord::new(41, at(1_700_000_000)));
    let known: BTreeSet<&str> =
        map.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str()).collect();
    assert_eq!(known, names("schema_version round timestamp datetime"));
    assert_eq!(map["timestamp"], 1_700_000_000.0);
    assert_eq!(map["datetime"], "2023-11-14T22:13:20.000Z");
}

#[test]
fn a_line_of_agft_itself_is_read_as_schema_0() {
    let line = r#"{"round": 3, "timestamp": 1.5, "datetime": "2025-08-03T10:00:00.5", "gpu_frequency_mhz": 1395,
        "energy_j": 200.5, "reward": -0.5, "slo_violation": false, "has_queue": 1, "some_new_key": [1]}"#;
    let record: RoundRecord = serde_json::from_str(line).unwrap();
    assert_eq!(record.schema_version, 0);
    assert_eq!((record.gpu_frequency_mhz, record.has_queue), (Some(Mhz(1395)), Some(1.0)));
    assert_eq!(record.tpot_avg, None);
}

/// A value that a field may have.
fn value_of(key: &'static str) -> BoxedStrategy<Value> {
    let integers = names(
        "available_frequencies_count pruned_frequencies_count frequency_exploration_count gpu_frequency_mhz \
         gpu_memory_frequency_mhz asked_core_mhz read_core_mhz holdout_cycle holdout_slot",
    );
    let texts = names("learning_phase action_selection_method state command decision_reason");
    let float = || prop::num::f64::NORMAL | prop::num::f64::ZERO;
    match key {
        "round" | "schema_version" => any::<u32>().prop_map(Value::from).boxed(),
        "timestamp" => float().prop_map(Value::from).boxed(),
        "datetime" => any::<String>().prop_map(Value::from).boxed(),
        "slo_violation" | "reward_used" | "holdout" => any::<Option<bool>>().prop_map(Value::from).boxed(),
        _ if integers.contains(key) => any::<Option<u32>>().prop_map(Value::from).boxed(),
        _ if texts.contains(key) => any::<Option<String>>().prop_map(Value::from).boxed(),
        _ => prop::option::of(float()).prop_map(Value::from).boxed(),
    }
}

fn any_record() -> impl Strategy<Value = Value> {
    let keys: Vec<&'static str> = (&names(AGFT) | &names(NEW)).into_iter().collect();
    let values: Vec<_> = keys.iter().map(|key| value_of(key)).collect();
    values.prop_map(move |values| keys.iter().map(|key| (*key).to_owned()).zip(values).collect())
}

proptest! {
    #[test]
    fn any_record_fits_on_one_line_and_comes_back_exactly(value in any_record()) {
        let record: RoundRecord = serde_json::from_value(value.clone()).unwrap();
        let line = serde_json::to_string(&record).unwrap();
        prop_assert!(!line.contains('\n'));
        prop_assert_eq!(&serde_json::from_str::<RoundRecord>(&line).unwrap(), &record);
        prop_assert_eq!(serde_json::to_value(&record).unwrap(), value);
    }
}
