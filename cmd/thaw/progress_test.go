package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"thaw/oci"
)

// lines gives what was drawn since the last call.
func lines(b *bytes.Buffer) []string {
	text := strings.TrimSuffix(b.String(), "\n")
	b.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func wantLines(t *testing.T, b *bytes.Buffer, want ...string) {
	t.Helper()
	if got := lines(b); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("drawn\n%q\nwant\n%q", got, want)
	}
}

func TestProgressOfLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := &progress{w: &b}
		p.draw()
		wantLines(t, &b)
		p.Layers([]oci.Layer{
			{DiffID: "sha256:aaaaaaaaaaaaaaaa", Size: 100 << 20},
			{DiffID: "sha256:bbbbbbbbbbbbbbbb", Size: -1},
			{DiffID: "sha256:cccccccccccccccc", Size: 5},
		})
		p.draw()
		wantLines(t, &b) // nothing has been read yet

		p.Read(0, 1)
		time.Sleep(2 * time.Second)
		p.Read(0, 20<<20-1)
		p.draw()
		wantLines(t, &b, "sha256:aaaaaaaaaaaa   20.0 MiB of 100.0 MiB  10.0 MiB/s  ETA 9 s")

		// The line is drawn again in its place, and a layer that is done stays above.
		p.Read(1, 512)
		p.Done(2, true)
		time.Sleep(time.Second)
		p.draw()
		wantLines(t, &b,
			"\x1b[1A\x1b[Jsha256:cccccccccccc  converted before, not read",
			"sha256:aaaaaaaaaaaa   20.0 MiB of 100.0 MiB  6.7 MiB/s  ETA 13 s",
			"sha256:bbbbbbbbbbbb      512 B  512 B/s")

		// Done early: the source had said more, and there is no time left to tell.
		p.Done(0, false)
		p.Done(1, false)
		p.draw()
		wantLines(t, &b,
			"\x1b[2A\x1b[Jsha256:aaaaaaaaaaaa   20.0 MiB  6.7 MiB/s",
			"sha256:bbbbbbbbbbbb      512 B  512 B/s")
		p.draw()
		wantLines(t, &b)
	})
}

func TestProgressOfChecking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		c := &checking{w: &b, total: 3 << 20}
		c.draw()
		wantLines(t, &b)
		c.add(1 << 20)
		time.Sleep(time.Second)
		c.draw()
		wantLines(t, &b, "checked    1.0 MiB of 3.0 MiB  1.0 MiB/s  ETA 3 s")
		c.add(2 << 20)
		c.draw()
		wantLines(t, &b, "\x1b[1A\x1b[Jchecked    3.0 MiB of 3.0 MiB  3.0 MiB/s")
	})
}

func TestProgressIsDrawnFiveTimesASecondAndAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drawn := 0
		stop := repeat(func() { drawn++ })
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		if drawn != 5 {
			t.Fatalf("drawn %d times in a second", drawn)
		}
		stop()
		if drawn != 6 {
			t.Fatalf("drawn %d times after the end", drawn)
		}
	})
}

func TestNoProgressWithoutTerminal(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := newProgress(file)
	p.Layers([]oci.Layer{{DiffID: "sha256:a", Size: 10}})
	p.Read(0, 10)
	p.Done(0, false)
	p.close()
	if info, err := file.Stat(); err != nil || info.Size() != 0 {
		t.Fatalf("%v, %v", info, err)
	}
}
