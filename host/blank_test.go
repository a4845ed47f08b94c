package host

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// started starts an agent ahead, which waits.
func (h *Host) started(t *testing.T, fetcher *Use, i Image) *Blank {
	t.Helper()
	b, err := h.StartAgent(t.Context(), fetcher, i.Agent)
	if err != nil {
		t.Fatal(err)
	}
	if !b.Alive() {
		t.Fatal("it does not wait")
	}
	return b
}

// ends waits for the end of a process.
func ends(t *testing.T, p process) {
	t.Helper()
	f, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	if f == nil {
		return
	}
	defer f.Close()
	if !waitFd(t.Context(), int(f.Fd()), testPatience) {
		t.Error("it does not end")
	}
}

// An image that is not mounted takes an agent that was started ahead, and one that
// is mounted takes none. An agent that nobody takes leaves nothing.
func TestBlank(t *testing.T) {
	h, fetcher, i := openImage(t)
	b := h.started(t, fetcher, i)
	var stages []string
	taken := 0
	i.Blank = func() *Blank { taken++; return b }
	i.Lap = func(stage string) { stages = append(stages, stage) }
	first, err := h.UseImage(t.Context(), fetcher, i)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, h.Rootfs(first, true)+"/file", "text")
	var r imageRecord
	if err := readRecord(h.dir("images", first.key, "image.json"), &r); err != nil || r.Process != b.process || !r.Process.alive() {
		t.Errorf("%+v, %v; the blank one was %+v", r, err, b.process)
	}
	second, err := h.UseImage(t.Context(), fetcher, i)
	if err != nil {
		t.Fatal(err)
	}
	if taken != 1 || !slices.Equal(stages, []string{StageBlank}) {
		t.Errorf("%d taken, stages %v", taken, stages)
	}
	if err := errors.Join(h.ReleaseImage(t.Context(), second), h.ReleaseImage(t.Context(), first)); err != nil {
		t.Error(err)
	}
	ends(t, r.Process)
	other := h.started(t, fetcher, i)
	other.Close()
	ends(t, other.process)
	if err := h.ReleaseFetcher(t.Context(), fetcher); err != nil {
		t.Error(err)
	}
	h.empty(t)
}

// Without one to take, or with one that was killed, also while the image's manifest
// is told, an image has an agent started.
func TestBlankKilled(t *testing.T) {
	h, fetcher, i := openImage(t)
	var work sync.WaitGroup
	defer work.Wait()
	for name, blank := range map[string]func() *Blank{
		"none": func() *Blank { return nil },
		"killed": func() *Blank {
			b := h.started(t, fetcher, i)
			if err := b.process.signal(unix.SIGKILL); err != nil {
				t.Error(err)
			}
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for late := time.Now().Add(testPatience); b.Alive(); <-tick.C { // its threads end one by one
				if time.Now().After(late) {
					t.Fatal("it waits still")
				}
			}
			return b
		},
		"killed later": func() *Blank {
			b := h.started(t, fetcher, i)
			if err := b.process.signal(unix.SIGSTOP); err != nil {
				t.Error(err)
			}
			work.Go(func() { // once it is the image's, and cannot serve it
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for record := h.dir("images", i.key(fetcher), "image.json"); t.Context().Err() == nil; <-tick.C {
					if _, err := os.Stat(record); err == nil {
						break
					}
				}
				_ = b.process.signal(unix.SIGKILL)
			})
			return b
		},
	} {
		var stages []string
		i := i
		i.Blank, i.Lap = blank, func(stage string) { stages = append(stages, stage) }
		u, err := h.UseImage(t.Context(), fetcher, i)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		holds(t, h.Rootfs(u, true)+"/file", "text")
		if !slices.Equal(stages, []string{StageAgent}) {
			t.Errorf("%s: stages %v", name, stages)
		}
		if err := h.ReleaseImage(t.Context(), u); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.ReleaseFetcher(t.Context(), fetcher); err != nil {
		t.Error(err)
	}
	h.empty(t)
}

// An agent that was started ahead does not outlive its parent, and is not waited
// for longer than the caller wants.
func TestBlankEnds(t *testing.T) {
	h, fetcher, i := openImage(t)
	b := h.started(t, fetcher, i)
	if err := b.link.Close(); err != nil { // as the kernel does when we are killed
		t.Error(err)
	}
	ends(t, b.process)
	b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if b, err := h.StartAgent(ctx, fetcher, "/bin/sleep"); err == nil {
		b.Close()
		t.Error("sleep is jailed")
	}
	if _, err := os.Stat(h.dir("jail")); err != nil {
		t.Error(err)
	}
	if err := h.ReleaseFetcher(t.Context(), fetcher); err != nil {
		t.Error(err)
	}
	h.empty(t)
}
