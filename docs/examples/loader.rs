//! A reader of golden files as raw numbers in about sixty lines, without any crate, and a golden test with it.
//!
//!     refattn golden softmax --format bin --out golden
//!     rustc --edition 2021 -O loader.rs && ./loader golden/float32/plain
use std::collections::HashMap;
use std::path::Path;
use std::{env, fs, process};

struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn f32(&self) -> Result<Vec<f32>, String> {
        self.numbers("float32", f32::from_le_bytes)
    }

    fn f64(&self) -> Result<Vec<f64>, String> {
        self.numbers("float64", f64::from_le_bytes)
    }

    fn numbers<T, const N: usize>(&self, dtype: &str, number: fn([u8; N]) -> T) -> Result<Vec<T>, String> {
        if self.dtype != dtype || self.bytes.len() != N * self.shape.iter().product::<usize>() {
            return Err(format!("{} bytes of {} and shape {:?}, expected {dtype}", self.bytes.len(), self.dtype, self.shape));
        }
        Ok(self.bytes.chunks_exact(N).map(|b| number(b.try_into().unwrap())).collect())
    }
}

/// A case: options as words, tensors by role and name.
struct Case {
    options: HashMap<String, Vec<String>>,
    tensors: HashMap<(String, String), Tensor>,
}

fn read_case(folder: &Path) -> Result<Case, String> {
    let text = fs::read_to_string(folder.join("index.txt")).map_err(|e| format!("index.txt: {e}"))?;
    let mut case = Case { options: HashMap::new(), tensors: HashMap::new() };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["option", name, values @ ..] => {
                case.options.insert(name.to_string(), values.iter().map(|v| v.to_string()).collect());
            }
            ["tensor", role, name, dtype, file, offset, _ndim, dims @ ..] => {
                let number = |word: &str| word.parse::<usize>().map_err(|e| format!("{line}: {e}"));
                let shape = dims.iter().map(|d| number(d)).collect::<Result<Vec<_>, _>>()?;
                let size = match *dtype {
                    "float64" | "int64" => 8,
                    "float32" | "int32" => 4,
                    "float16" | "bfloat16" => 2,
                    _ => 1,
                } * shape.iter().product::<usize>();
                let (data, begin) = (fs::read(folder.join(file)).map_err(|e| format!("{file}: {e}"))?, number(offset)?);
                let bytes = data.get(begin..begin + size).ok_or(format!("{file} is too short"))?.to_vec();
                case.tensors.insert((role.to_string(), name.to_string()), Tensor { dtype: dtype.to_string(), shape, bytes });
            }
            _ => {} // what comes from a later version
        }
    }
    Ok(case)
}

/// What is tested: put yours here.
fn softmax(x: &[f32], classes: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(classes) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = row.iter().map(|v| (v - largest).exp()).sum();
        y.extend(row.iter().map(|v| (v - largest).exp() / total));
    }
    y
}

fn test(folder: &Path) -> Result<usize, String> {
    let case = read_case(folder)?;
    let tensor = |role: &str, name: &str| case.tensors.get(&(role.into(), name.into())).ok_or(format!("no {role} {name}"));
    if !case.options.is_empty() {
        return Err("softmax has no options".into());
    }
    let x = tensor("argument", "x")?;
    let got = softmax(&x.f32()?, x.shape[x.shape.len() - 1]);
    let (want, budget) = (tensor("output", "output")?.f64()?, tensor("budget", "output.budget")?.f64()?);
    if got.len() != want.len() {
        return Err(format!("{} numbers, expected {}", got.len(), want.len()));
    }
    let wrong = (0..want.len()).filter(|&i| !((f64::from(got[i]) - want[i]).abs() <= budget[i])).count();
    println!("{wrong} of {} wrong", want.len());
    Ok(wrong)
}

fn main() {
    let folder = env::args().nth(1).unwrap_or_default();
    process::exit(match test(Path::new(&folder)) {
        Ok(wrong) => i32::from(wrong > 0),
        Err(error) => {
            eprintln!("loader: {error}");
            2
        }
    });
}
