//! What it costs to read a metrics page: captured pages of vLLM 0.32, one engine (51 kB) and two (84 kB).
//!
//! agft reads one page per decision interval (0.3 s). Run with `cargo bench --bench page`.

use std::hint::black_box;

use agft::metrics::page::Page;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn pages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("page");
    for (name, body) in [
        ("one engine", &include_bytes!("../tests/data/metrics/vllm-0.32.0-under-load.txt")[..]),
        ("two engines", &include_bytes!("../tests/data/metrics/vllm-0.32.0-dp2-under-load.txt")[..]),
    ] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| Page::parse(black_box(body), None)));
    }
    group.finish();
}

criterion_group!(benches, pages);
criterion_main!(benches);
