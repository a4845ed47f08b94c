package frontend

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkWarmInvoke is one client's signed invoke of 1 KiB through the
// frontend, with a worker that echoes; "echo" asks such a worker's server alone.
func BenchmarkWarmInvoke(b *testing.B) {
	d := newDoor(b)
	d.function("f")
	payload := `"` + strings.Repeat("x", 1022) + `"`
	request := func() *http.Request {
		r, err := http.NewRequest(http.MethodPost, d.url+"/2015-03-31/functions/f/invocations", strings.NewReader(payload))
		if err != nil {
			b.Fatal(err)
		}
		return r
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	do := func(b *testing.B, r *http.Request) {
		resp, err := client.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			b.Fatalf("status %d", resp.StatusCode)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	signed := request()
	d.sign(signed, payload, d.key)
	again := func() *http.Request {
		r := request()
		r.Header = signed.Header.Clone() // signing is the client's work
		return r
	}
	do(b, again())
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			do(b, again())
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				do(b, again())
			}
		})
	})
	b.Run("echo", func(b *testing.B) {
		for b.Loop() {
			r, err := http.NewRequest(http.MethodGet, d.url+"/health", nil)
			if err != nil {
				b.Fatal(err)
			}
			do(b, r)
		}
	})
}
