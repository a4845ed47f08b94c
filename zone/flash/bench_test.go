package flash

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// stripe is the length of what a zone node mostly keeps.
const stripe = 128*kib + 64

// filled is a store of 2 GiB, three quarters full of stripes.
func filled(b *testing.B) (s *Store, count int) {
	s = open(b, b.TempDir(), Options{Size: 2 << 30})
	data := value(1, 1, stripe)
	count = int(2 << 30 / 4 * 3 / slotSize(stripe))
	for n := range count {
		if _, err := s.Put(key(n), data); err != nil {
			b.Fatal(err)
		}
	}
	return s, count
}

// evict has the page cache forget the store's files.
func evict(b *testing.B, s *Store) {
	for _, seg := range s.segments {
		if err := unix.Fdatasync(int(seg.file.Fd())); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fadvise(int(seg.file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			b.Fatal(err)
		}
	}
}

// quantiles reports those of a latency.
func quantiles(b *testing.B, what string, quantile func(float64) float64) {
	for _, q := range []float64{0.5, 0.99, 0.999} {
		b.ReportMetric(quantile(q), fmt.Sprintf("%s-p%g-µs", what, q*100))
	}
}

// BenchmarkPut puts new stripes into a store that gets full.
func BenchmarkPut(b *testing.B) {
	s, _ := filled(b)
	data := value(1, 1, stripe)
	before := s.writes.Snapshot()
	b.SetBytes(stripe)
	for n := 0; b.Loop(); n++ {
		if _, err := s.Put(Key{byte(n), byte(n >> 8), byte(n >> 16), 7}, data); err != nil {
			b.Fatal(err)
		}
	}
	after := s.writes.Snapshot()
	after = after.Since(before)
	quantiles(b, "write", func(q float64) float64 { return float64(after.Quantile(q).Microseconds()) })
	b.ReportMetric(float64(s.Stats().Rewritten)/float64(s.Stats().Written), "rewritten/written")
}

// BenchmarkGet reads stripes, from the page cache and from the disk.
func BenchmarkGet(b *testing.B) {
	s, count := filled(b)
	for _, cold := range []bool{false, true} {
		b.Run(map[bool]string{false: "cached", true: "disk"}[cold], func(b *testing.B) {
			evict(b, s)
			span := count
			buf := make([]byte, 0, stripe)
			if !cold {
				span = 200
				for n := range span {
					if _, err := s.Get(key(n), buf); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.SetBytes(stripe)
			for n := 0; b.Loop(); n++ {
				if cold && n%span == 0 {
					evict(b, s)
				}
				if _, err := s.Get(key(n*7919%span), buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkView sends stripes over loopback, by sendfile and by way of a buffer.
func BenchmarkView(b *testing.B) {
	s, _ := filled(b)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(io.Discard, struct{ io.Reader }{c})
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.Run("sendfile", func(b *testing.B) {
		b.SetBytes(stripe)
		for n := 0; b.Loop(); n++ {
			v, err := s.View(key(n % 100))
			if err != nil {
				b.Fatal(err)
			}
			if sent, err := io.CopyN(c, v.File, v.Size); err != nil || sent != stripe {
				b.Fatal(sent, err)
			}
			v.Close()
		}
	})
	b.Run("buffer", func(b *testing.B) {
		b.SetBytes(stripe)
		buf := make([]byte, 0, stripe)
		for n := 0; b.Loop(); n++ {
			data, err := s.Get(key(n%100), buf)
			if err == nil {
				_, err = c.Write(data)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkOpen finds what a store holds, with nothing in the page cache.
func BenchmarkOpen(b *testing.B) {
	s, count := filled(b)
	for b.Loop() {
		b.StopTimer()
		evict(b, s)
		b.StartTimer()
		s = again(b, s)
	}
	if scan := s.Stats().Scan; scan.Slots != count {
		b.Errorf("%d of %d: %+v", scan.Slots, count, scan)
	}
	b.ReportMetric(float64(s.Stats().Scan.Duration.Microseconds())/float64(count), "µs/value")
	b.ReportMetric(float64(s.Stats().Scan.Bytes)/float64(count), "bytes/value")
}

// BenchmarkIndex fills the index of a store with small values.
func BenchmarkIndex(b *testing.B) {
	for b.Loop() {
		s := open(b, b.TempDir(), Options{Size: 1 << 30})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		const count = 60_000
		for n := range count {
			if _, err := s.Put(Key{byte(n), byte(n >> 8), byte(n >> 16)}, []byte("x")); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(s.Stats().Items), "bytes/value")
		s.Close()
	}
}
