package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"thaw/cache"
	"thaw/latency"
	"thaw/text"
)

// numbers is what --stats-json writes, on one line.
type numbers struct {
	Image       string             `json:"image"`
	DeviceBytes int64              `json:"device_bytes"`
	ImageBytes  int64              `json:"image_bytes"` // of all chunks
	Bytes       tiers              `json:"bytes"`       // of chunks first touched meanwhile
	Chunks      tiers              `json:"chunks"`
	Corrupt     tiers              `json:"corrupt"` // times that a tier gave other bytes than the chunk's
	Prefetch    prefetched         `json:"prefetch"`
	StartMS     map[string]float64 `json:"start_ms"`

	Latency map[string]quantiles `json:"latency_us,omitempty"` // by tier and stage
}

// prefetched is what was fetched ahead, as the trace of earlier starts has it.
type prefetched struct {
	Chunks  int64 `json:"chunks"`
	Bytes   int64 `json:"bytes"`
	Used    int64 `json:"used"`              // chunks that were touched meanwhile
	Damaged int   `json:"damaged,omitempty"` // traces of no use
}

type tiers struct {
	Cache  int64 `json:"cache"`
	Zone   int64 `json:"zone"`
	Origin int64 `json:"origin"`
}

func (t tiers) sum() int64 { return t.Cache + t.Zone + t.Origin }

// words tells of chunks by tier, farthest first.
func (t tiers) words() string {
	zone := ""
	if t.Zone > 0 {
		zone = fmt.Sprintf("%d from the zone, ", t.Zone)
	}
	return fmt.Sprintf("%d chunks from the origin, %s%d from the cache", t.Origin, zone, t.Cache)
}

// quantiles are of the time that a tier took to give a chunk, or a stage took,
// in µs, to within a fifth.
type quantiles struct {
	Count uint64 `json:"count"`
	P50   int64  `json:"p50"`
	P99   int64  `json:"p99"`
}

// latencies gives those of the tiers and stages that did something meanwhile.
func latencies(before, after cache.Stats) map[string]quantiles {
	all := map[string]quantiles{}
	add := func(what string, before, after latency.Snapshot) {
		if d := after.Since(before); d.Count() > 0 {
			all[what] = quantiles{d.Count(), d.Quantile(0.5).Microseconds(), d.Quantile(0.99).Microseconds()}
		}
	}
	add("cache", before.Cache.Latency, after.Cache.Latency)
	add("zone", before.Zone.Latency, after.Zone.Latency)
	add("origin", before.Origin.Latency, after.Origin.Latency)
	add("hash", before.Hash, after.Hash)
	add("decrypt", before.Decrypt, after.Decrypt)
	return all
}

// unheard says why no node of the zone has ever answered the fetcher, if that is
// so and the instance had chunks from the origin.
func (k *keeper) unheard(ctx context.Context, after cache.Stats) string {
	if after.Origin.Chunks <= k.Before.Origin.Chunks {
		return ""
	}
	return unheardOf(k.host.FetcherStats(ctx, k.fetcher).More)
}

// unheardOf reads it from what the fetcher says of its zone, if it has one.
func unheardOf(more json.RawMessage) string {
	var s struct {
		Zone struct {
			Unheard string `json:"unheard"`
		} `json:"zone"`
	}
	if len(more) == 0 || json.Unmarshal(more, &s) != nil {
		return ""
	}
	return s.Zone.Unheard
}

// report tells what was loaded while the instance ran.
func (k *keeper) report(after cache.Stats) error {
	n := numbers{Image: k.instance.ImageID, DeviceBytes: k.DeviceBytes, ImageBytes: k.ImageBytes, StartMS: k.Stages}
	n.Bytes = tiers{after.Cache.Bytes - k.Before.Cache.Bytes, after.Zone.Bytes - k.Before.Zone.Bytes, after.Origin.Bytes - k.Before.Origin.Bytes}
	n.Chunks = tiers{after.Cache.Chunks - k.Before.Cache.Chunks, after.Zone.Chunks - k.Before.Zone.Chunks, after.Origin.Chunks - k.Before.Origin.Chunks}
	n.Corrupt = tiers{after.Cache.Corrupt - k.Before.Cache.Corrupt, after.Zone.Corrupt - k.Before.Zone.Corrupt, after.Origin.Corrupt - k.Before.Origin.Corrupt}
	n.Prefetch = prefetched{
		Chunks: after.Prefetched.Chunks - k.Before.Prefetched.Chunks, Bytes: after.Prefetched.Bytes - k.Before.Prefetched.Bytes,
		Used: after.PrefetchUsed.Chunks - k.Before.PrefetchUsed.Chunks,
	}
	if after.IsZero() { // the agent had ended
		n.Bytes, n.Chunks, n.Corrupt, n.Prefetch = tiers{}, tiers{}, tiers{}, prefetched{}
	}
	if k.TraceDamaged {
		n.Prefetch.Damaged = 1
	}
	n.Latency = latencies(k.Before, after)
	text := fmt.Sprintf("thaw: read %s of %s (%.1f %%): %s",
		text.Bytes(n.Bytes.sum()), text.Bytes(n.ImageBytes), 100*float64(n.Bytes.sum())/float64(max(n.ImageBytes, 1)), n.Chunks.words())
	if p := n.Prefetch; p.Chunks > 0 {
		text += fmt.Sprintf("; fetched %d ahead, %d in vain", p.Chunks, max(p.Chunks-p.Used, 0))
	}
	if total, ok := k.Stages["total"]; ok { // it did start
		text += fmt.Sprintf("; started in %.0f ms", total)
	}
	fmt.Fprintln(os.Stderr, text)
	if k.StatsFile == "" {
		return nil
	}
	line, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := os.WriteFile(k.StatsFile, append(line, '\n'), 0o644); err != nil {
		return fmt.Errorf("--stats-json: %w", err)
	}
	return nil
}
