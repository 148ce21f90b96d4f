use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use super::*;
use crate::store::dir::Dir;
use crate::store::testing::{Tmpfs, names_in};

fn writer(dir: &Path, segment_bytes: u64, total_bytes: u64) -> StepWriter {
    StepWriter::within(Dir::open_or_create(dir).unwrap(), StepLimits { segment_bytes, total_bytes })
}

/// A segment of 250 steps in three batches, closed or not.
fn segment(closed: bool) -> Vec<u8> {
    let tmp = tempfile::tempdir().unwrap();
    let mut writer = writer(tmp.path(), u64::MAX, u64::MAX);
    writer.begin(&"head", &7_u64).unwrap();
    for step in 0..250_u64 {
        assert!(!writer.step(&(step, [1.5; 20], step)).unwrap());
    }
    if closed {
        writer.close().unwrap();
    }
    fs::read(tmp.path().join("000001.agft-steps")).unwrap()
}

fn read(bytes: &[u8]) -> Result<(Vec<u64>, Option<End>), StepsError> {
    let mut reader = SegmentReader::new(Cursor::new(bytes), Path::new("x/000001.agft-steps"))?;
    let mut steps = Vec::new();
    if let Some((kind, head)) = reader.next_frame()? {
        assert_eq!((kind, &head[..]), (Kind::Head, &b"\"head\""[..]));
        if let Some((kind, snapshot)) = reader.next_frame()? {
            assert_eq!((kind, unpack::<u64>(&snapshot)), (Kind::Snapshot, Ok(7)));
            while let Some(batch) = reader.next_batch()? {
                for step in batch {
                    steps.push(unpack::<(u64, [f64; 20], u64)>(&step).unwrap().0);
                }
            }
        }
    }
    Ok((steps, reader.end()))
}

#[test]
fn steps_come_back_in_order_and_a_closed_segment_says_so() {
    let all: Vec<u64> = (0..250).collect();
    assert_eq!(read(&segment(true)).unwrap(), (all, Some(End::Closed)));
    // The last, partial batch is written by closing.
    assert_eq!(read(&segment(false)).unwrap(), ((0..200).collect(), Some(End::Open)));
}

#[test]
fn every_truncation_is_read_up_to_its_last_whole_batch() {
    let sound = segment(true);
    let mut seen = std::collections::BTreeSet::new();
    for length in 0..sound.len() {
        let (steps, end) = read(&sound[..length]).unwrap();
        assert_eq!(steps, (0..steps.len() as u64).collect::<Vec<_>>());
        assert!(matches!(end, Some(End::Torn | End::Open)), "{length}: {end:?}");
        seen.insert(steps.len());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 100, 200, 250]);
    let zeros = [&segment(false)[..], &[0; 64]].concat();
    assert_eq!(read(&zeros).unwrap().1, Some(End::Torn), "space that was never filled");
}

#[test]
fn every_flipped_bit_is_found_and_the_file_named() {
    let sound = segment(true);
    for bit in 0..sound.len() * 8 {
        let mut flipped = sound.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = read(&flipped).expect_err("a flipped bit").to_string();
        assert!(error.contains("x/000001.agft-steps"), "bit {bit}: {error}");
    }
    let longer = [&sound[..], b"\0"].concat();
    assert!(read(&longer).unwrap_err().to_string().contains("something follows the end"));
}

#[test]
fn files_that_are_foreign_or_of_another_version_are_told_apart() {
    assert!(matches!(read(b"%PDF-1.7 and so on"), Err(StepsError::Foreign { .. })));
    for version in [OLDEST_STEPS_VERSION - 1, STEPS_VERSION + 1] {
        let other = [&MAGIC[..], &version.to_le_bytes(), b"whatever"].concat();
        let error = read(&other).unwrap_err().to_string();
        assert!(
            error.contains(&format!("format version {version}"))
                && error.contains("the agft that recorded it"),
            "{error}"
        );
    }
    let sound = segment(true);
    for version in OLDEST_STEPS_VERSION..=STEPS_VERSION {
        let known = [&MAGIC[..], &version.to_le_bytes(), &sound[12..]].concat();
        assert_eq!(read(&known).unwrap(), read(&sound).unwrap(), "{version}");
    }
    assert_eq!(read(b"AGFT").unwrap().1, Some(End::Torn), "killed at birth");
}

#[test]
fn full_segments_are_said_and_the_oldest_go() {
    let tmp = tempfile::tempdir().unwrap();
    let (segment_bytes, total_bytes) = (20_000, 60_000);
    let mut writer = writer(tmp.path(), segment_bytes, total_bytes);
    let mut dice = 1_u64;
    for _ in 0..12 {
        writer.begin(&"head", &7_u64).unwrap();
        loop {
            // Noise does not pack.
            let noise: Vec<u64> = std::iter::repeat_with(|| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                dice
            })
            .take(10)
            .collect();
            if writer.step(&noise).unwrap() {
                break;
            }
        }
    }
    writer.close().unwrap();
    let sizes: u64 = names_in(tmp.path()).iter().map(|n| tmp.path().join(n).metadata().unwrap().len()).sum();
    // A segment ends with the batch that fills it.
    assert!(sizes <= total_bytes + 12_000, "{sizes}");
    assert_eq!(names_in(tmp.path()).last().unwrap(), "000012.agft-steps");
    assert!(names_in(tmp.path()).len() >= 2);
}

#[test]
fn segments_are_listed_by_number_and_nothing_else_is() {
    let tmp = tempfile::tempdir().unwrap();
    let nothing = |path: &Path| segments_of(path).unwrap_err().to_string();
    assert!(nothing(tmp.path()).contains("holds no steps"));
    assert!(nothing(&tmp.path().join("absent")).contains("cannot list"));
    let dir = tmp.path().join(DIR);
    fs::create_dir(&dir).unwrap();
    for name in
        ["000010.agft-steps", "000002.agft-steps", "2.agft-steps", "x.agft-steps", "1000000.agft-steps"]
    {
        fs::write(dir.join(name), "").unwrap();
    }
    let names: Vec<PathBuf> = segments_of(tmp.path()).unwrap();
    let want = ["000002.agft-steps", "000010.agft-steps", "1000000.agft-steps"].map(|name| dir.join(name));
    assert_eq!(names, want);
}

#[test]
fn a_full_disk_ends_the_segment_in_a_whole_frame() {
    let Some(disk) = Tmpfs::mount("size=64k") else { return };
    let mut writer = writer(disk.path(), u64::MAX, u64::MAX);
    writer.begin(&"head", &7_u64).unwrap();
    let mut dice = 1_u64;
    let error = loop {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if let Err(error) = writer.step(&[dice, dice ^ 0x5555, dice.rotate_left(9)]) {
            break error;
        }
    };
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull));
    assert!(!writer.step(&[1_u64, 2, 3]).unwrap(), "and nothing is written any more");
    let bytes = fs::read(disk.path().join("000001.agft-steps")).unwrap();
    let mut reader = SegmentReader::new(Cursor::new(bytes), Path::new("f")).unwrap();
    while reader.next_frame().unwrap().is_some() {}
    assert_eq!(reader.end(), Some(End::Open));
}
