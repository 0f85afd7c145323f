// Draws the next token of every row from its logits, a workgroup a row: repetition penalty, temperature, top-k, top-p, min-p,
// then the token at which the running sum of probabilities, by id, passes a random share; greedy takes the likeliest, of
// equals the lowest id. Threads take neighbouring runs of ids. Thresholds are found by halving the range of the bits of the
// logits, whose order is that of the numbers. Logits that are NaN or +∞ give the token BROKEN. Twin: cpu/decode.rs,
// `decode_sample`.
struct Params {
    rows: u32, vocab: u32,
    greedy: u32, top_k: u32, // 0: all
    top_p: f32, min_p: f32, temperature: f32, penalty: f32,
    words: u32, // of a row of `seen`
    unused0: u32, unused1: u32, unused2: u32,
}
struct Row { token: u32, column: u32, start: u32, step: u32 }

@group(0) @binding(0) var<storage, read_write> logits: array<f32>; // [rows, vocab]
@group(0) @binding(1) var<storage, read> shares: array<f32>; // [steps, rows] uniform random numbers
@group(0) @binding(2) var<storage, read_write> seen: array<u32>; // [rows, words] a bit for every token that came before
@group(0) @binding(3) var<storage, read_write> rows: array<Row>;
@group(0) @binding(4) var<storage, read_write> tokens: array<u32>; // [steps, rows]
@group(0) @binding(5) var<uniform> params: Params;

const WG: u32 = 256u;
const BROKEN: u32 = 0xffffffffu;
const OUT: f32 = -3e38;
var<workgroup> sh_sum: array<f32, WG>;
var<workgroup> sh_key: array<u32, WG>;
var<workgroup> sh_token: array<u32, WG>;
var<workgroup> sh_chosen: u32;

// Bits whose order as integers is that of the numbers.
fn key(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

// The sum over all threads.
fn total(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    sh_sum[thread] = value;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half >>= 1u) {
        if (thread < half) {
            sh_sum[thread] += sh_sum[thread + half];
        }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&sh_sum[0]);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let run = (params.vocab + WG - 1u) / WG;
    let first = row * params.vocab + min(thread * run, params.vocab);
    let last = row * params.vocab + min(thread * run + run, params.vocab);
    let base = row * params.vocab;

    // The penalty, what is broken, and the likeliest token.
    var best = 0u;
    var best_at = 0u;
    var broken = false;
    for (var i = first; i < last; i += 1u) {
        var x = logits[i];
        let bits = bitcast<u32>(x);
        broken = broken || ((bits & 0x7f800000u) == 0x7f800000u && bits != 0xff800000u);
        if (bits == 0xff800000u) {
            x = OUT;
        }
        let token = i - base;
        if (params.penalty != 1.0 && x > OUT && ((seen[row * params.words + token / 32u] >> (token % 32u)) & 1u) == 1u) {
            x = select(x / params.penalty, x * params.penalty, x < 0.0);
        }
        logits[i] = x;
        let k = key(x);
        if (k > best) {
            best = k;
            best_at = token;
        }
    }
    sh_key[thread] = select(best, 0xffffffffu, broken);
    sh_token[thread] = best_at;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half >>= 1u) {
        if (thread < half && sh_key[thread + half] > sh_key[thread]) { // of equals the lower id stays
            sh_key[thread] = sh_key[thread + half];
            sh_token[thread] = sh_token[thread + half];
        }
        workgroupBarrier();
    }
    let top_key = workgroupUniformLoad(&sh_key[0]);
    let top_token = workgroupUniformLoad(&sh_token[0]);
    var chosen = top_token;
    if (top_key == 0xffffffffu || top_key <= key(OUT)) {
        chosen = BROKEN;
    } else if (params.greedy == 0u) {
        let top = logits[base + top_token];
        var least = key(OUT) + 1u; // tokens with smaller keys are out
        if (params.top_k > 0u && params.top_k < params.vocab) {
            // The largest key that at least top_k tokens reach.
            var low = least;
            var high = top_key;
            while (low < high) {
                let middle = low + (high - low + 1u) / 2u;
                var count = 0.0;
                for (var i = first; i < last; i += 1u) {
                    count += select(0.0, 1.0, key(logits[i]) >= middle);
                }
                if (total(count, thread) >= f32(params.top_k)) {
                    low = middle;
                } else {
                    high = middle - 1u;
                }
            }
            least = low;
        }
        if (params.top_p < 1.0) {
            var sum = 0.0;
            for (var i = first; i < last; i += 1u) {
                let x = logits[i];
                sum += select(0.0, exp((x - top) / params.temperature), key(x) >= least);
            }
            let cut = (1.0 - params.top_p) * total(sum, thread);
            // The smallest key up to which there is more than what may go.
            var low = least;
            var high = top_key;
            while (low < high) {
                let middle = low + (high - low) / 2u;
                sum = 0.0;
                for (var i = first; i < last; i += 1u) {
                    let x = logits[i];
                    let k = key(x);
                    sum += select(0.0, exp((x - top) / params.temperature), k >= least && k <= middle);
                }
                if (total(sum, thread) > cut) {
                    high = middle;
                } else {
                    low = middle + 1u;
                }
            }
            least = low;
        }
        var sum = 0.0;
        for (var i = first; i < last; i += 1u) {
            let x = logits[i];
            let p = exp((x - top) / params.temperature);
            sum += select(0.0, p, key(x) >= least && p >= params.min_p);
        }
        let all = total(sum, thread);
        sh_sum[thread] = sum;
        if (thread == 0u) {
            sh_chosen = BROKEN;
        }
        workgroupBarrier();
        // The thread in whose run the sum passes the share; the last token that can come takes what rounding leaves.
        var before = 0.0;
        var after = false;
        for (var i = 0u; i < WG; i += 1u) {
            before += select(0.0, sh_sum[i], i < thread);
            after = after || (i > thread && sh_sum[i] > 0.0);
        }
        let wanted = shares[rows[row].step * params.rows + row] * all;
        if (sum > 0.0 && before <= wanted && (wanted < before + sum || !after)) {
            var rest = wanted - before;
            var found = BROKEN;
            for (var i = first; i < last; i += 1u) {
                let x = logits[i];
                let p = exp((x - top) / params.temperature);
                if (key(x) >= least && p >= params.min_p && p > 0.0 && (found == BROKEN || rest >= 0.0)) {
                    found = i - base;
                    rest -= p;
                }
            }
            sh_chosen = found;
        }
        workgroupBarrier();
        chosen = select(sh_chosen, top_token, sh_chosen == BROKEN);
    }
    if (thread == 0u) {
        tokens[rows[row].step * params.rows + row] = chosen;
        let next = min(chosen, params.vocab - 1u);
        let word = row * params.words + next / 32u;
        seen[word] |= 1u << (next % 32u);
        rows[row].token = next;
        rows[row].column += 1u;
        rows[row].step += 1u;
    }
}
