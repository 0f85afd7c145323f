//! Root-mean-square normalisation over rows of `d = w.len()`.

/// `y = x · r · w` and `r = 1/√(mean(x²) + eps)` per row.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let (mut y, mut scales) = (Vec::new(), Vec::new());
    for x in x.chunks(w.len()) {
        let mean = x.iter().map(|x| x * x).sum::<f32>() / w.len() as f32;
        let r = 1.0 / (mean + eps).sqrt();
        y.extend(x.iter().zip(w).map(|(x, w)| x * r * w));
        scales.push(r);
    }
    (y, scales)
}

/// `dx = r·(dy·w − x·r²·mean(dy·w·x))`.
pub fn rms_norm_dx(dy: &[f32], x: &[f32], w: &[f32], scales: &[f32]) -> Vec<f32> {
    let d = w.len();
    let mut dx = Vec::new();
    for ((dy, x), r) in dy.chunks(d).zip(x.chunks(d)).zip(scales) {
        let mean = (0..d).map(|i| dy[i] * w[i] * x[i]).sum::<f32>() / d as f32;
        dx.extend((0..d).map(|i| r * (dy[i] * w[i] - x[i] * r * r * mean)));
    }
    dx
}

/// `dw = Σ_rows dy·x·r`.
pub fn rms_norm_dw(dy: &[f32], x: &[f32], scales: &[f32], d: usize) -> Vec<f32> {
    let mut dw = vec![0.0; d];
    for ((dy, x), r) in dy.chunks(d).zip(x.chunks(d)).zip(scales) {
        for i in 0..d {
            dw[i] += dy[i] * x[i] * r;
        }
    }
    dw
}
