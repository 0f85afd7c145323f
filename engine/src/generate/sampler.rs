//! The next token: a chain of pure functions over the logits, as transformers chains them.
//!
//! repetition penalty → temperature → top-k → top-p → min-p → softmax → draw. A token that is ruled out has the
//! logit −∞.

use crate::data::random::Random;
use crate::error::{Error, Result};
use crate::protocol::Sampling;

const OUT: f32 = f32::NEG_INFINITY;

/// Checks every parameter, also those that greedy decoding leaves unused.
///
/// # Errors
/// [`Error::Config`] naming the flag, its value and the allowed range.
pub fn validate(sampling: &Sampling) -> Result<()> {
    let range = |flag: &str, value: f32, low: f32, high: f32| {
        if value >= low && value <= high {
            return Ok(()); // NaN is not
        }
        Err(Error::Config(format!("--{flag} {value}: must lie between {low} and {high}")))
    };
    range("temperature", sampling.temperature, 0.0, 100.0)?;
    range("top-p", sampling.top_p, 0.0, 1.0)?;
    range("min-p", sampling.min_p, 0.0, 1.0)?;
    range("repetition-penalty", sampling.repetition_penalty, 0.01, 100.0)
}

/// The tokens that may come next with their probabilities, by id. `previous`: prompt and text so far.
///
/// # Errors
/// [`Error::Data`] for logits that are NaN or +∞, or all ruled out.
pub fn distribution(logits: &[f32], sampling: &Sampling, previous: &[u32]) -> Result<Vec<(u32, f32)>> {
    let mut logits = logits.to_vec();
    check(&logits)?;
    repetition_penalty(&mut logits, previous, sampling.repetition_penalty);
    if sampling.greedy || sampling.temperature == 0.0 {
        return Ok(vec![(argmax(&logits), 1.0)]);
    }
    temperature(&mut logits, sampling.temperature);
    top_k(&mut logits, sampling.top_k);
    top_p(&mut logits, sampling.top_p);
    min_p(&mut logits, sampling.min_p);
    Ok(softmax(&logits))
}

/// Draws the next token; greedy decoding takes the most likely one, of equals the lowest id, and draws nothing.
///
/// # Errors
/// As [`distribution`].
pub fn draw(logits: &[f32], sampling: &Sampling, previous: &[u32], random: &mut Random) -> Result<u32> {
    let tokens = distribution(logits, sampling, previous)?;
    if let [(token, _)] = tokens[..]
        && (sampling.greedy || sampling.temperature == 0.0)
    {
        return Ok(token);
    }
    let total: f64 = tokens.iter().map(|(_, p)| f64::from(*p)).sum();
    let mut rest = random.f64() * total;
    for (token, p) in &tokens {
        rest -= f64::from(*p);
        if rest < 0.0 {
            return Ok(*token);
        }
    }
    // Rounding may leave a crumb: it belongs to the last token that can come at all.
    Ok(tokens.iter().rev().find(|(_, p)| *p > 0.0).map_or_else(|| argmax(logits), |(token, _)| *token))
}

/// Probability of a token under the model, and the `count` likeliest tokens with theirs, of equals the lower id first:
/// softmax of the logits as they are, whatever the sampling then makes of them.
pub fn likeliest(logits: &[f32], token: u32, count: usize) -> (f64, Vec<(u32, f64)>) {
    let top = logits[argmax(logits) as usize];
    let exp = |x: f32| f64::from(x - top).exp();
    let sum: f64 = logits.iter().map(|x| exp(*x)).sum();
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    let share = |id: u32| logits.get(id as usize).map_or(0.0, |x| exp(*x) / sum);
    (share(token), ids.into_iter().map(|id| (id, share(id))).collect())
}

/// Index of the largest logit, of equals the lowest.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as u32
}

fn check(logits: &[f32]) -> Result<()> {
    let bad = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY);
    if let Some(token) = bad {
        return Err(Error::Data(format!(
            "the model gave {} for token {token}; its weights or its precision are broken: try --device cpu, or another checkpoint",
            logits[token]
        )));
    }
    if logits.iter().all(|x| *x == OUT) {
        return Err(Error::Data(format!("the model rules out all of its {} tokens; try another checkpoint", logits.len())));
    }
    Ok(())
}

/// Divides positive and multiplies negative logits of tokens that came before, each once: `penalty` > 1 repeats less.
pub fn repetition_penalty(logits: &mut [f32], previous: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = previous.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(x) = logits.get_mut(token as usize) {
            *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
        }
    }
}

/// Divides by the temperature: below 1 sharper, above 1 flatter.
pub fn temperature(logits: &mut [f32], temperature: f32) {
    if temperature == 1.0 {
        return;
    }
    // Relative to the largest logit, so that a tiny temperature cannot overflow. Softmax does not see the shift.
    let top = logits[argmax(logits) as usize];
    logits.iter_mut().for_each(|x| *x = (*x - top) / temperature);
}

/// Keeps the `k` largest logits and what equals the smallest of them; 0 keeps all.
pub fn top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, smallest, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let smallest = *smallest;
    logits.iter_mut().filter(|x| **x < smallest).for_each(|x| *x = OUT);
}

/// Keeps the smallest set of most likely tokens whose probabilities sum to `p`: a token goes if it and all less
/// likely ones together have at most `1 − p`. The most likely one stays.
pub fn top_p(logits: &mut [f32], p: f32) {
    if p >= 1.0 {
        return;
    }
    // 0.8 as people write it, not the f32 next to it: transformers subtracts decimals and compares in f32.
    let p: f64 = p.to_string().parse().unwrap_or(f64::from(p));
    let cut = (1.0 - p) as f32;
    let mut ascending = softmax(logits);
    // Tokens this unlikely go even if all are: nothing but the rest needs sorting.
    let surely = cut / (2.0 * logits.len() as f32);
    let mut sum: f64 = ascending.iter().filter(|(_, p)| *p < surely).map(|(_, p)| f64::from(*p)).sum();
    ascending.retain(|(token, p)| {
        if *p < surely {
            logits[*token as usize] = OUT;
        }
        *p >= surely
    });
    ascending.sort_by(|a, b| a.1.total_cmp(&b.1)); // stable: of equals the lower id goes first
    ascending.pop();
    for (token, p) in ascending {
        sum += f64::from(p);
        if sum as f32 > cut {
            break;
        }
        logits[token as usize] = OUT;
    }
}

/// Keeps tokens that are at least `p` times as likely as the most likely one.
pub fn min_p(logits: &mut [f32], p: f32) {
    if p <= 0.0 {
        return;
    }
    let top = logits[argmax(logits) as usize];
    // exp(x − top) is the probability relative to the top one; equal logits must survive p = 1.
    logits.iter_mut().filter(|x| (**x - top).exp() < p).for_each(|x| *x = OUT);
}

/// Probabilities of the tokens that are not ruled out (nor 10⁴⁵ times less likely than the best), by id. The sum is f64.
pub fn softmax(logits: &[f32]) -> Vec<(u32, f32)> {
    let top = logits[argmax(logits) as usize];
    let mut tokens: Vec<(u32, f32)> = Vec::new();
    let mut sum = 0.0f64;
    for (i, x) in logits.iter().enumerate().filter(|(_, x)| **x > OUT) {
        let weight = (x - top).exp();
        if weight > 0.0 {
            sum += f64::from(weight);
            tokens.push((i as u32, weight));
        }
    }
    tokens.iter_mut().for_each(|(_, p)| *p = (f64::from(*p) / sum) as f32);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling =
        Sampling { greedy: false, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 };

    /// Logits whose softmax is `p`.
    fn logs(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    #[track_caller]
    fn kept(p: &[f32], sampling: Sampling, expect: &[u32]) {
        let tokens = distribution(&logs(p), &sampling, &[]).unwrap();
        assert_eq!(tokens.iter().map(|(token, _)| *token).collect::<Vec<_>>(), expect);
        let sum: f64 = tokens.iter().map(|(_, p)| f64::from(*p)).sum();
        assert!((sum - 1.0).abs() < 1e-6, "probabilities sum to {sum}"); // 1e-6: each is rounded to f32
    }

    #[test]
    fn the_likeliest_tokens_have_the_probabilities_of_a_softmax() {
        // exp of them: 1, 4, 2, 2, 1.
        let logits = [1f32, 4.0, 2.0, 2.0, 1.0].map(f32::ln);
        let (probability, likeliest) = likeliest(&logits, 2, 3);
        assert!((probability - 0.2).abs() < 1e-7, "{probability}");
        let ids: Vec<u32> = likeliest.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 2, 3]);
        for ((_, found), expect) in likeliest.iter().zip([0.4, 0.2, 0.2]) {
            assert!((found - expect).abs() < 1e-7, "{found} {expect}");
        }
        let (ruled_out, all) = super::likeliest(&[OUT, 700.0, 699.0], 0, 20);
        assert_eq!((ruled_out, all.len(), all[2]), (0.0, 3, (0, 0.0)));
        assert!((all.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn plain_sampling_is_the_softmax() {
        let tokens = distribution(&[0.0, 2f32.ln(), OUT], &PLAIN, &[]).unwrap();
        assert_eq!(tokens.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
        assert!((tokens[1].1 - 2.0 / 3.0).abs() < 1e-7);
    }

    #[test]
    fn top_k_keeps_ties() {
        let p = [0.1, 0.2, 0.4, 0.2, 0.1];
        kept(&p, Sampling { top_k: 1, ..PLAIN }, &[2]);
        kept(&p, Sampling { top_k: 2, ..PLAIN }, &[1, 2, 3]);
        kept(&p, Sampling { top_k: 99, ..PLAIN }, &[0, 1, 2, 3, 4]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p() {
        let p = [0.05, 0.5, 0.15, 0.3];
        kept(&p, Sampling { top_p: 0.0, ..PLAIN }, &[1]);
        kept(&p, Sampling { top_p: 0.49, ..PLAIN }, &[1]);
        kept(&p, Sampling { top_p: 0.51, ..PLAIN }, &[1, 3]);
        kept(&p, Sampling { top_p: 0.85, ..PLAIN }, &[1, 2, 3]);
        kept(&p, Sampling { top_p: 0.96, ..PLAIN }, &[0, 1, 2, 3]);
        kept(&p, Sampling { top_p: 1.0, ..PLAIN }, &[0, 1, 2, 3]);
        kept(&[0.5; 10], Sampling { top_p: 0.8, ..PLAIN }, &[2, 3, 4, 5, 6, 7, 8, 9]); // exactly 0.2 goes, as in transformers
        kept(&[0.5; 10], Sampling { top_p: 0.79, ..PLAIN }, &[2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn top_p_without_sorting_the_tail_equals_sorting_all() {
        let mut random = Random::new(3);
        for p in [0.1f32, 0.5, 0.9, 0.99] {
            let logits: Vec<f32> = (0..2000).map(|_| (random.f64() * 16.0) as f32).collect();
            let mut pruned = logits.clone();
            top_p(&mut pruned, p);
            let mut sorted = softmax(&logits);
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut sum = 0.0;
            let mut expect: Vec<u32> = sorted
                .iter()
                .take_while(|(_, q)| {
                    let more = sum < f64::from(p);
                    sum += f64::from(*q);
                    more
                })
                .map(|t| t.0)
                .collect();
            expect.sort_unstable();
            assert_eq!(softmax(&pruned).iter().map(|t| t.0).collect::<Vec<_>>(), expect, "p = {p}");
        }
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        let p = [0.1, 0.5, 0.15, 0.25];
        kept(&p, Sampling { min_p: 0.29, ..PLAIN }, &[1, 2, 3]);
        kept(&p, Sampling { min_p: 0.4, ..PLAIN }, &[1, 3]);
        kept(&p, Sampling { min_p: 1.0, ..PLAIN }, &[1]);
    }

    #[test]
    fn the_chain_filters_in_order() {
        // top-k leaves .5 .3 .15 → shares .526 .316 .158; top-p 0.8 then drops the last.
        kept(&[0.05, 0.5, 0.15, 0.3], Sampling { top_k: 3, top_p: 0.8, ..PLAIN }, &[1, 3]);
        kept(&[0.05, 0.5, 0.15, 0.3], Sampling { top_k: 3, min_p: 0.5, temperature: 0.5, ..PLAIN }, &[1]);
    }

    #[test]
    fn repetition_penalty_counts_every_token_once() {
        let mut logits = vec![2.0, -2.0, 3.0, 0.0];
        repetition_penalty(&mut logits, &[0, 1, 0, 0, 3, 77], 2.0);
        assert_eq!(logits, [1.0, -4.0, 3.0, 0.0]);
    }

    #[test]
    fn temperature_divides_and_zero_is_greedy() {
        let tokens = distribution(&[0.0, 1.0], &Sampling { temperature: 0.5, ..PLAIN }, &[]).unwrap();
        assert!((tokens[1].1 - 1.0 / (1.0 + (-2.0f32).exp())).abs() < 1e-6);
        let cold = Sampling { temperature: 0.0, ..PLAIN };
        assert_eq!(distribution(&[1.0, 5.0, 5.0], &cold, &[]).unwrap(), [(1, 1.0)]);
        let tiny = Sampling { temperature: 1e-30, ..PLAIN };
        assert_eq!(distribution(&[-3e4, 3e4, 2.9e4], &tiny, &[]).unwrap(), [(1, 1.0)]);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_after_the_penalty() {
        let greedy = Sampling { greedy: true, repetition_penalty: 2.0, ..PLAIN };
        let mut random = Random::new(1);
        let before = random.clone();
        assert_eq!(draw(&[1.0, 3.0, 3.0], &greedy, &[1], &mut random).unwrap(), 2);
        assert_eq!(draw(&[OUT, 3.0, 3.0], &greedy, &[], &mut random).unwrap(), 1);
        assert_eq!(random.next_u64(), before.clone().next_u64(), "greedy decoding draws nothing");
    }

    #[test]
    fn draws_follow_the_distribution() {
        let mut random = Random::new(7);
        let logits = logs(&[0.1, 0.6, 0.3]);
        let mut counts = [0u32; 3];
        for _ in 0..20_000 {
            counts[draw(&logits, &PLAIN, &[], &mut random).unwrap() as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip([0.1, 0.6, 0.3]) {
            // 0.015: more than four standard deviations of 20,000 draws.
            assert!((f64::from(count) / 20_000.0 - p).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn broken_logits_are_errors() {
        for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[OUT, OUT], &[]] {
            for greedy in [false, true] {
                let message = distribution(logits, &Sampling { greedy, ..PLAIN }, &[]).unwrap_err().to_string();
                assert!(!message.contains('\n') && message.contains("another checkpoint"), "{message}");
            }
        }
    }

    #[test]
    fn absurd_parameters_are_refused_by_flag() {
        validate(&PLAIN).unwrap();
        validate(&Sampling { temperature: 0.0, top_p: 0.0, min_p: 1.0, ..PLAIN }).unwrap();
        for (flag, sampling) in [
            ("--temperature NaN", Sampling { temperature: f32::NAN, ..PLAIN }),
            ("--temperature -1", Sampling { temperature: -1.0, ..PLAIN }),
            ("--temperature inf", Sampling { temperature: f32::INFINITY, ..PLAIN }),
            ("--top-p 1.5", Sampling { top_p: 1.5, ..PLAIN }),
            ("--top-p NaN", Sampling { top_p: f32::NAN, ..PLAIN }),
            ("--min-p -0.1", Sampling { min_p: -0.1, ..PLAIN }),
            ("--repetition-penalty 0", Sampling { repetition_penalty: 0.0, ..PLAIN }),
        ] {
            let message = validate(&sampling).unwrap_err().to_string();
            assert!(message.starts_with(flag), "{message}");
        }
    }
}
