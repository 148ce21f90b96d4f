//! Which GPUs an instance uses: by the key `gpus`, else as CUDA takes it from the environment.

use std::collections::BTreeMap;

use super::section::{Item, Report};
use super::yaml::Value;
use crate::spec::Gpus;

pub(super) const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
const ORDER: &str = "CUDA_DEVICE_ORDER";
/// The order of `nvidia-smi`.
const BUS_ORDER: &str = "PCI_BUS_ID";

const RULE: &str =
    "none, all, or GPUs by index or UUID (GPU-..., MIG-...), as one value or a list of one kind";

/// The GPUs of an instance whose environment is `inherited` with `env` on top.
///
/// Where the key says it and the environment does not, the environment is made to say the same.
pub(super) fn of_instance(
    report: &Report,
    key: Option<Item<'_>>,
    env: &mut BTreeMap<String, String>,
    inherited: &BTreeMap<String, String>,
) -> Gpus {
    let Some(item) = key else {
        let value = |name| env.get(name).or_else(|| inherited.get(name)).map(String::as_str);
        return visible(value(VISIBLE), value(ORDER));
    };
    let Some(gpus) = given(&item) else { return Gpus::All };
    if env.contains_key(VISIBLE) {
        report
            .note(format!("gpus says what {VISIBLE} in env says too; the process gets that of env as it is"));
        return gpus;
    }
    let list = match &gpus {
        Gpus::All => return gpus,
        Gpus::None => "-1".to_owned(),
        Gpus::Indices(list) | Gpus::CudaIndices(list) => {
            match env.get(ORDER) {
                Some(order) if order != BUS_ORDER => {
                    let remedy = format!("take {ORDER} out of env, or give the GPUs by UUID");
                    item.wrong(
                        &format!("without {ORDER}={order}: an index is that of nvidia-smi"),
                        Some(remedy),
                    );
                }
                _ => {
                    env.insert(ORDER.into(), BUS_ORDER.into());
                }
            }
            list.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
        }
        Gpus::Uuids(list) => list.join(","),
    };
    env.insert(VISIBLE.into(), list);
    gpus
}

/// The key's value.
fn given(item: &Item<'_>) -> Option<Gpus> {
    let words: Option<Vec<&str>> = match &item.node.value {
        Value::Scalar { text, .. } => Some(text.split(',').map(str::trim).collect()),
        Value::List(items) => items
            .iter()
            .map(|node| match &node.value {
                Value::Scalar { text, .. } => Some(text.trim()),
                _ => None,
            })
            .collect(),
        Value::Map(_) => None,
    };
    let read = words.and_then(|words| match words.as_slice() {
        [] => None,
        ["none"] => Some(Gpus::None),
        ["all"] => Some(Gpus::All),
        words if words.iter().all(|word| is_uuid(word)) => {
            Some(Gpus::Uuids(words.iter().map(|&word| word.to_owned()).collect()))
        }
        words => words.iter().map(|word| word.parse().ok()).collect::<Option<_>>().map(Gpus::Indices),
    });
    let twice = match &read {
        Some(Gpus::Indices(list)) => repeats(list),
        Some(Gpus::Uuids(list)) => repeats(list),
        _ => false,
    };
    match read {
        Some(_) if twice => item.wrong("a list without repetition", None),
        Some(gpus) => return Some(gpus),
        None => {
            let empty = matches!(&item.node.value, Value::List(items) if items.is_empty());
            item.wrong(RULE, empty.then(|| "write none for a program without a GPU".into()));
        }
    }
    None
}

fn is_uuid(word: &str) -> bool {
    let rest = word.strip_prefix("GPU-").or_else(|| word.strip_prefix("MIG-"));
    rest.is_some_and(|rest| {
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '/'))
    })
}

fn repeats<T: PartialEq>(list: &[T]) -> bool {
    list.iter().enumerate().any(|(k, item)| list[..k].contains(item))
}

/// What CUDA makes visible: the entries before the first invalid one; nothing where one stands there twice.
fn visible(list: Option<&str>, order: Option<&str>) -> Gpus {
    let Some(list) = list else { return Gpus::All };
    let words = list.split(',').map(str::trim);
    let by_uuid = ["GPU-", "MIG-"].into_iter().find(|prefix| list.trim_start().starts_with(prefix));
    if let Some(prefix) = by_uuid {
        let uuids: Vec<String> = words
            .take_while(|word| word.starts_with(prefix) && is_uuid(word))
            .map(ToOwned::to_owned)
            .collect();
        return if uuids.is_empty() || repeats(&uuids) { Gpus::None } else { Gpus::Uuids(uuids) };
    }
    let indices: Vec<u32> = words.map_while(leading_number).collect();
    if indices.is_empty() || repeats(&indices) {
        return Gpus::None;
    }
    if order == Some(BUS_ORDER) { Gpus::Indices(indices) } else { Gpus::CudaIndices(indices) }
}

/// As C's `strtoul` reads an index: what follows the digits is ignored. `None` for what is no index.
fn leading_number(word: &str) -> Option<u32> {
    let digits = word.strip_prefix('+').unwrap_or(word);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uuids(list: &[&str]) -> Gpus {
        Gpus::Uuids(list.iter().map(|&uuid| uuid.to_owned()).collect())
    }

    #[test]
    fn the_variable_is_read_as_cuda_reads_it() {
        use Gpus::{All, CudaIndices, None};
        assert_eq!(visible(Option::None, Option::None), All);
        for (list, gpus) in [
            ("0", CudaIndices(vec![0])),
            ("1,0", CudaIndices(vec![1, 0])),
            (" 0 , 2 ", CudaIndices(vec![0, 2])),
            ("0,1,-1,2", CudaIndices(vec![0, 1])),
            ("2gpu,1", CudaIndices(vec![2, 1])),
            ("0,GPU-1234", CudaIndices(vec![0])),
            ("", None),
            ("-1", None),
            ("NoDevFiles", None),
            ("none", None),
            ("0,0", None),
            (",0", None),
            ("99999999999", None),
            ("GPU-8932f937-d72c", uuids(&["GPU-8932f937-d72c"])),
            ("GPU-a,GPU-b,0,GPU-c", uuids(&["GPU-a", "GPU-b"])),
            ("GPU-a,GPU-a", None),
            ("GPU-", None),
            ("MIG-GPU-8932f937/1/2", uuids(&["MIG-GPU-8932f937/1/2"])),
            ("MIG-a,GPU-b", uuids(&["MIG-a"])),
        ] {
            assert_eq!(visible(Some(list), Option::None), gpus, "{list:?}");
        }
        assert_eq!(visible(Some("1"), Some("PCI_BUS_ID")), Gpus::Indices(vec![1]));
        assert_eq!(visible(Some("1"), Some("FASTEST_FIRST")), CudaIndices(vec![1]));
    }

    proptest! {
        #[test]
        fn any_value_is_read(list in any::<String>(), likely in "[-+0-9,GPUMIa /]{0,30}") {
            for list in [list, likely] {
                if let Gpus::CudaIndices(indices) = visible(Some(&list), None) {
                    prop_assert!(!indices.is_empty() && !repeats(&indices));
                }
            }
        }
    }
}
