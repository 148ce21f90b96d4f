//! GPU types.
//!
//! Grade of each figure: D measured data, P paper or vendor document, S secondary note, K common knowledge, A our
//! assumption. Achieved arithmetic is 0.6 of the dense 16-bit peak and achieved bandwidth 0.85 of the peak, both A and
//! usual for tuned kernels.
//!
//! The power coefficients of GeForce and RTX PRO boards are fitted to measured clock and cap sweeps (D), base and idle
//! shares given; `calibration` shows how well they describe them. The data-centre boards' idle shares are measured (D),
//! their busy shares A: a dense step at the highest clock runs into the cap, as it does on the measured boards.

use crate::sim::measured::{MEMORY_5090, Measured, Sweeps, TOP_3090, TOP_4090, TOP_5090, TOP_PRO_6000};
use crate::sim::physics::{GpuPreset, Physics, PowerModel, SensorModel, Settle, Voltage};
use agft::units::{Mhz, Seconds, Watts};

/// Achieved FLOP/s at `reached` from the dense peak in TFLOP/s that the vendor states for the boost clock `rated`.
const fn achieved_flops(peak_tflops: f64, rated: f64, reached: f64) -> f64 {
    0.6 * peak_tflops * 1e12 * reached / rated
}

/// Achieved bytes/s from the peak in GB/s.
const fn achieved_bandwidth(peak_gb: f64) -> f64 {
    0.85 * peak_gb * 1e9
}

/// Ampere, Ada and Hopper: 10-100 ms (P).
const SETTLE: Settle = Settle { median: 0.032, sigma: 0.55, bounds: (0.010, 0.100) };
/// Blackwell: far faster (S claims 10-100 us; the driver call alone takes about 1 ms, K).
const SETTLE_BLACKWELL: Settle = Settle { median: 0.002, sigma: 0.5, bounds: (0.001, 0.005) };

/// Flat to 0.58 f_max, then 20 % up: read off the RTX 5090 clock sweep (D).
const VOLTAGE: Voltage = Voltage { knee: 0.58, rise: 0.20 };

/// A100 and H100 integrate 25 of every 100 ms (P).
const SENSORS_DATACENTRE: SensorModel = SensorModel {
    energy_tick: 0.02,
    power_period: 0.1,
    power_window: 0.025,
    power_noise: 0.01,
    gain_error: 0.02,
};
/// GA10x and AD10x workstation boards: a mean over 1 s (P).
const SENSORS_AVERAGED: SensorModel = SensorModel {
    energy_tick: 0.05,
    power_period: 0.1,
    power_window: 1.0,
    power_noise: 0.005,
    gain_error: 0.02,
};
/// GeForce boards with the instantaneous field; counter period as measured on an RTX 4090 (S).
const SENSORS_GEFORCE: SensorModel = SensorModel {
    energy_tick: 0.106,
    power_period: 0.1,
    power_window: 0.1,
    power_noise: 0.01,
    gain_error: 0.02,
};

/// Every GPU type whose steps cost what the formula says.
pub const GPUS: [GpuPreset; 10] =
    [A100, H100, H200, A6000, A40, L40S, RTX3090, RTX4090, RTX5090, RTX_PRO_6000];

/// The boards whose steps cost what was measured.
pub const MEASURED_GPUS: [GpuPreset; 4] =
    [RTX3090_MEASURED, RTX4090_MEASURED, RTX5090_MEASURED, RTX_PRO_6000_MEASURED];

/// A100 SXM 80 GB.
pub const A100: GpuPreset = GpuPreset {
    key: "a100",
    name: "NVIDIA A100-SXM4-80GB",
    core_range: (Mhz(210), Mhz(1410)), // D
    core_step: 15.0,                   // D
    core_reached: Mhz(1410),           // D
    memory: &[Mhz(1593)],              // D
    power_cap: Watts(400.0),           // D
    memory_bytes: 80e9,
    bandwidth: achieved_bandwidth(2039.0),        // D
    on_chip: 1.7 * achieved_bandwidth(2039.0),    // A: ITL grows well below 1/f (P)
    flops: achieved_flops(312.0, 1410.0, 1410.0), // D
    corner: 4.0,                                  // A
    voltage: VOLTAGE,
    // D for idle (PCIe board: 53.7 W at 210 MHz, 80.0 W at 1410); busy: about 380 W under load (S).
    power: PowerModel {
        base: 40.7,
        memory_idle: 10.0,
        core_idle: 29.3,
        active: 15.0,
        dram: 60.0,
        core: 300.0,
        stall: 0.1,
    },
    settle: SETTLE,
    sensors: SENSORS_DATACENTRE,
    parks_itself_after: None, // D: clocks stay up while a context is open
    physics: Physics::Formula,
};

/// H100 SXM 80 GB.
pub const H100: GpuPreset = GpuPreset {
    key: "h100",
    name: "NVIDIA H100 80GB HBM3",
    core_range: (Mhz(345), Mhz(1980)), // D
    core_step: 15.0,                   // D
    core_reached: Mhz(1980),           // D
    memory: &[Mhz(2619)],              // D
    power_cap: Watts(700.0),           // D
    memory_bytes: 80e9,
    bandwidth: achieved_bandwidth(3352.0),        // D
    on_chip: 3.5 * achieved_bandwidth(3352.0),    // A: as the H200, with less bandwidth
    flops: achieved_flops(989.0, 1830.0, 1980.0), // K
    corner: 4.0,                                  // A
    voltage: VOLTAGE,
    // D for idle: 71.8 W at 345 MHz, 121.7 W at 1980. Busy: decode 304 W at batch 1, 583 W at batch 128 (S).
    power: PowerModel {
        base: 44.9,
        memory_idle: 20.0,
        core_idle: 56.8,
        active: 20.0,
        dram: 80.0,
        core: 520.0,
        stall: 0.05,
    },
    settle: SETTLE,
    sensors: SENSORS_DATACENTRE,
    parks_itself_after: None, // D
    physics: Physics::Formula,
};

/// H200 SXM 141 GB.
pub const H200: GpuPreset = GpuPreset {
    key: "h200",
    name: "NVIDIA H200",
    core_reached: Mhz(1830), // P: requests of 1830 and more run at 1830
    memory: &[Mhz(3201)],    // D
    memory_bytes: 141e9,
    bandwidth: achieved_bandwidth(4800.0),        // P
    on_chip: 3.5 * achieved_bandwidth(4800.0), // A: 1980 -> 780 MHz costs decode of small models next to nothing (P)
    flops: achieved_flops(989.0, 1830.0, 1830.0), // K
    ..H100
};

/// RTX A6000 48 GB.
pub const A6000: GpuPreset = GpuPreset {
    key: "a6000",
    name: "NVIDIA RTX A6000",
    core_range: (Mhz(210), Mhz(2100)),                              // P
    core_step: 15.0,                                                // P
    core_reached: Mhz(1800),                                        // K
    memory: &[Mhz(8001), Mhz(7601), Mhz(5001), Mhz(810), Mhz(405)], // P
    power_cap: Watts(300.0),                                        // P
    memory_bytes: 48e9,
    bandwidth: achieved_bandwidth(768.0),         // K
    on_chip: 1.6 * achieved_bandwidth(768.0),     // A
    flops: achieved_flops(154.8, 1800.0, 1800.0), // K
    corner: 4.0,                                  // A
    voltage: Voltage { knee: 0.75, rise: 0.3 },   // A: the RTX 3090's, cut at a lower top clock
    power: PowerModel {
        base: 14.0,
        memory_idle: 24.0,
        core_idle: 32.0,
        active: 30.0,
        dram: 45.0,
        core: 330.0,
        stall: 0.17,
    }, // idle near the A40's points, busy as the GA102 of the RTX 3090 at a lower top clock
    settle: SETTLE,
    sensors: SENSORS_AVERAGED,
    parks_itself_after: None,
    physics: Physics::Formula,
};

/// A40 48 GB.
pub const A40: GpuPreset = GpuPreset {
    key: "a40",
    name: "NVIDIA A40",
    core_range: (Mhz(210), Mhz(1740)),            // K
    core_reached: Mhz(1740),                      // K
    memory: &[Mhz(7251), Mhz(405)],               // D
    bandwidth: achieved_bandwidth(696.0),         // K
    on_chip: 1.6 * achieved_bandwidth(696.0),     // A
    flops: achieved_flops(149.7, 1740.0, 1740.0), // K
    // D for idle: about 18 W at 405 MHz memory, 80 W at 7251.
    power: PowerModel {
        base: 14.0,
        memory_idle: 30.0,
        core_idle: 38.0,
        active: 30.0,
        dram: 45.0,
        core: 320.0,
        stall: 0.17,
    },
    ..A6000
};

/// L40S 48 GB.
pub const L40S: GpuPreset = GpuPreset {
    key: "l40s",
    name: "NVIDIA L40S",
    core_range: (Mhz(210), Mhz(2520)),                              // D
    core_reached: Mhz(2520),                                        // D
    memory: &[Mhz(9001), Mhz(8801), Mhz(5001), Mhz(810), Mhz(405)], // D/K
    power_cap: Watts(350.0),                                        // D
    bandwidth: achieved_bandwidth(864.0),                           // D
    on_chip: 1.9 * achieved_bandwidth(864.0),                       // A: as the RTX 4090
    flops: achieved_flops(362.0, 2520.0, 2520.0),                   // K
    voltage: Voltage { knee: 0.6, rise: 0.3 },                      // A: as the RTX 4090
    // D for idle: 35.6 W at 210/405, 61 W at 210/9001, 102.3 W at 2520/9001.
    power: PowerModel {
        base: 31.9,
        memory_idle: 26.6,
        core_idle: 43.8,
        active: 30.0,
        dram: 45.0,
        core: 330.0,
        stall: 0.2,
    },
    ..A6000
};

/// GeForce RTX 3090 24 GB.
pub const RTX3090: GpuPreset = GpuPreset {
    key: "rtx3090",
    name: "NVIDIA GeForce RTX 3090",
    core_range: (Mhz(210), Mhz(2100)),                              // S
    core_reached: Mhz(1935),                                        // D: highest clock seen in the cap sweep
    memory: &[Mhz(9751), Mhz(9501), Mhz(5001), Mhz(810), Mhz(405)], // S
    power_cap: Watts(350.0),                                        // S
    memory_bytes: 24e9,
    bandwidth: achieved_bandwidth(936.0),         // K
    on_chip: 1.4 * achieved_bandwidth(936.0),     // A: decode is clock-sensitive on this board (D)
    flops: achieved_flops(71.0, 1695.0, 1935.0),  // K: 32-bit accumulation
    voltage: Voltage { knee: 0.758, rise: 0.45 }, // D: flat far up, steep at the top
    power: PowerModel {
        base: 20.0,
        memory_idle: 40.0,
        core_idle: 40.0,
        active: 49.0,
        dram: 60.0,
        core: 459.0,
        stall: 0.17,
    },
    sensors: SENSORS_GEFORCE,
    parks_itself_after: Some(Seconds(8.0)), // S: 24 W in the low state with a process loaded; the delay is A
    ..A6000
};

/// GeForce RTX 4090 24 GB.
pub const RTX4090: GpuPreset = GpuPreset {
    key: "rtx4090",
    name: "NVIDIA GeForce RTX 4090",
    core_range: (Mhz(210), Mhz(3105)),                                // K
    core_reached: Mhz(2610),                                          // D: where the cap sweep ends
    memory: &[Mhz(10501), Mhz(10251), Mhz(5001), Mhz(810), Mhz(405)], // K
    power_cap: Watts(450.0),                                          // K
    bandwidth: achieved_bandwidth(1008.0),                            // K
    on_chip: 1.9 * achieved_bandwidth(1008.0), // D: fitted ratio of core to memory time
    flops: achieved_flops(165.0, 2520.0, 2610.0), // K
    voltage: Voltage { knee: 0.6, rise: 0.3 }, // D
    power: PowerModel {
        base: 15.0,
        memory_idle: 25.0,
        core_idle: 35.0,
        active: 55.0,
        dram: 60.0,
        core: 370.0,
        stall: 0.226,
    },
    ..RTX3090
};

/// GeForce RTX 5090 32 GB.
pub const RTX5090: GpuPreset = GpuPreset {
    key: "rtx5090",
    name: "NVIDIA GeForce RTX 5090",
    core_range: (Mhz(180), Mhz(3090)),                    // D
    core_step: 7.5,                                       // D
    core_reached: Mhz(3090),                              // D
    memory: &[Mhz(14001), Mhz(7001), Mhz(810), Mhz(405)], // D
    power_cap: Watts(575.0),                              // D
    memory_bytes: 32e9,
    bandwidth: achieved_bandwidth(1792.0),        // D
    on_chip: 1.6 * achieved_bandwidth(1792.0),    // A
    flops: achieved_flops(209.0, 2407.0, 3090.0), // K
    voltage: Voltage { knee: 0.636, rise: 0.25 }, // D
    power: PowerModel {
        base: 14.0,
        memory_idle: 19.0,
        core_idle: 39.0,
        active: 21.0,
        dram: 7.0,
        core: 564.0,
        stall: 0.055,
    },
    settle: SETTLE_BLACKWELL,
    ..RTX3090
};

/// RTX PRO 6000 Blackwell 96 GB.
pub const RTX_PRO_6000: GpuPreset = GpuPreset {
    key: "rtxpro6000",
    name: "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    core_range: (Mhz(180), Mhz(2842)), // S
    core_reached: Mhz(2842),           // S
    power_cap: Watts(600.0),           // D
    memory_bytes: 96e9,
    on_chip: 1.5 * achieved_bandwidth(1792.0), // D: fitted ratio of core to memory time, batch 1
    flops: achieved_flops(252.0, 2842.0, 2842.0), // K
    // D: flat until the very top, and hardly less power while the core waits.
    voltage: Voltage { knee: 0.907, rise: 0.3 },
    power: PowerModel {
        base: 25.0,
        memory_idle: 25.0,
        core_idle: 50.0,
        active: 48.0,
        dram: 60.0,
        core: 667.0,
        stall: 0.72,
    },
    parks_itself_after: None,
    ..RTX5090
};

/// A board that offers the clocks that were measured, with the arithmetic and data path of `formula_top`
/// scaled to its highest one: they say how long a step takes there.
const fn measured(board: GpuPreset, formula_top: Mhz) -> GpuPreset {
    let top = board.core_range.1;
    let scale = top.0 as f64 / formula_top.0 as f64;
    GpuPreset { core_reached: top, flops: board.flops * scale, on_chip: board.on_chip * scale, ..board }
}

/// GeForce RTX 3090 by measured points.
pub const RTX3090_MEASURED: GpuPreset = measured(
    GpuPreset {
        key: "rtx3090-measured",
        core_range: (Mhz(735), TOP_3090),
        memory: &[Mhz(9751)],
        physics: Physics::Measured(Measured::of(Sweeps::Rtx3090)),
        ..RTX3090
    },
    RTX3090.core_reached,
);

/// GeForce RTX 4090 by measured points.
pub const RTX4090_MEASURED: GpuPreset = measured(
    GpuPreset {
        key: "rtx4090-measured",
        core_range: (Mhz(1470), TOP_4090),
        memory: &[Mhz(10501)],
        physics: Physics::Measured(Measured::of(Sweeps::Rtx4090)),
        ..RTX4090
    },
    RTX4090.core_reached,
);

/// GeForce RTX 5090 by measured points.
pub const RTX5090_MEASURED: GpuPreset = measured(
    GpuPreset {
        key: "rtx5090-measured",
        core_range: (Mhz(1335), TOP_5090),
        memory: &MEMORY_5090,
        physics: Physics::Measured(Measured::of(Sweeps::Rtx5090)),
        ..RTX5090
    },
    RTX5090.core_reached,
);

/// RTX PRO 6000 Blackwell by measured points.
pub const RTX_PRO_6000_MEASURED: GpuPreset = measured(
    GpuPreset {
        key: "rtxpro6000-measured",
        core_range: (Mhz(1568), TOP_PRO_6000),
        memory: &[Mhz(14001)],
        physics: Physics::Measured(Measured::of(Sweeps::RtxPro6000)),
        ..RTX_PRO_6000
    },
    RTX_PRO_6000.core_reached,
);
