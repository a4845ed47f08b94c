package bench

import "testing"

// rounds is how often a pair is measured.
const rounds = 5

// BenchmarkConvert compares a conversion into an empty folder with gzip -dc of
// the same layers, one after the other.
func BenchmarkConvert(b *testing.B) {
	for _, name := range []string{"python", "jre", "big"} {
		b.Run(name, func(b *testing.B) { benchConvert(b, name) })
	}
}

func benchConvert(b *testing.B, name string) {
	thaw, layout := program(b), corpus(b, name)
	n := rounds
	if name == "big" {
		n = 2
	}
	var wall, cpu Ratios
	var peak int64
	var c conversion
	for range n {
		gzip := timed(b, "sh", append([]string{"-c", `exec gzip -dc "$@" >/dev/null`, "sh"}, layerBlobs(b, layout)...)...)
		// Not removed before the end: ext4 passes over inodes freed in the last
		// seconds one by one, which took a conversion 3 s of CPU.
		state := b.TempDir()
		var o outcome
		c, o = convert(b, thaw, state, layout)
		wall = append(wall, o.wall.Seconds()/gzip.wall.Seconds())
		cpu = append(cpu, o.cpu.Seconds()/gzip.cpu.Seconds())
		peak = max(peak, o.peakRSS)
	}
	say("convert %s: %d MiB read, %d MiB stored; wall %v × gzip -dc, CPU %v; peak memory %d MiB",
		name, c.Bytes.Read/mib, c.Bytes.New/mib, wall, cpu, peak/mib)
	b.ReportMetric(wall[len(wall)/2], "×gzip")
}

// BenchmarkConvertAgain compares the first conversion of an image with the
// second, and with one of a version whose top layer changed.
func BenchmarkConvertAgain(b *testing.B) {
	thaw := program(b)
	var again, changed Ratios
	var c conversion
	for range rounds {
		state := b.TempDir()
		_, first := convert(b, thaw, state, corpus(b, "app-v1"))
		_, second := convert(b, thaw, state, corpus(b, "app-v1"))
		var third outcome
		c, third = convert(b, thaw, state, corpus(b, "app-v2"))
		again = append(again, first.wall.Seconds()/second.wall.Seconds())
		changed = append(changed, first.wall.Seconds()/third.wall.Seconds())
	}
	say("convert again: %v × faster; a version with its top layer changed: %v × faster, %d of %d layers read, %d new chunks",
		again, changed, c.Layers.Total-c.Layers.Reused, c.Layers.Total, c.Chunks.New)
	b.ReportMetric(again[len(again)/2], "×faster")
}
