package worker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"thaw/text"
)

// diskReserve is what an instance's /tmp is counted for, in bytes, before more was
// written: its tables take some, and small files come soon.
const diskReserve = 4 << 20

// LeastDisk is the least of Options.Disk, in bytes, that an instance starts with:
// logs may take half.
const LeastDisk = 2 * diskReserve

// fullEvery is how often the log says at most that the disk is used up.
const fullEvery = time.Minute

// freeDisk gives half of what is free where the state is: the other half is for
// all else, and for what instances that work may still write.
func freeDisk(state string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(state, &fs); err != nil {
		return 0, fmt.Errorf("worker: the disk of %s: %w", state, err)
	}
	return int64(fs.Bavail) * fs.Bsize / 2, nil
}

// disk is what the files of instances are counted for, as far as they were
// measured, and all logs. mu is held.
func (w *Worker) disk() int64 {
	bytes := w.logs.bytes.Load()
	for _, i := range w.instances {
		bytes += max(diskReserve, i.written.Load())
	}
	return bytes
}

// tellFull says why a start is refused, now and then. mu is held.
func (w *Worker) tellFull(now time.Time) {
	if now.Sub(w.toldFull) < fullEvery {
		return
	}
	w.toldFull = now
	w.log.Warn("starts are refused: the disk that /tmp and logs may take is used up: give the worker more (--disk), or end what writes so much",
		"used", text.Bytes(w.disk()), "limit", text.Bytes(w.o.Disk), "logs", text.Bytes(w.logs.bytes.Load()), "instances", len(w.instances))
}

// tmp is what the files of instances take, as far as they were measured.
func (w *Worker) tmp() (bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.instances {
		bytes += i.written.Load()
	}
	return bytes
}

// measure asks what the instances' /tmp take on disk. What was written to them and
// removed stays until they end.
func (w *Worker) measure() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.instances {
		select {
		case <-i.ready:
			if i.failed != nil {
				continue
			}
			if n, err := i.box.host.ScratchSize(); err == nil { // else it is ending
				i.written.Store(n)
			}
		default:
		}
	}
}

// relieve ends idle instances, those with the largest /tmp first, until what is
// left is within the limit: starts are refused until then. One that works is let
// be.
func (w *Worker) relieve(ctx context.Context) {
	w.measure()
	w.mu.Lock()
	over := w.disk() - w.o.Disk
	var all []*instance
	for _, i := range w.instances {
		if over > 0 && i.written.Load() > diskReserve {
			all = append(all, i)
		}
	}
	w.mu.Unlock()
	slices.SortFunc(all, func(a, b *instance) int { return cmp.Compare(b.written.Load(), a.written.Load()) })
	for _, i := range all {
		if over <= 0 {
			return
		}
		if err := w.end(ctx, i, false); err == nil {
			w.log.Warn("an idle instance is ended: the disk that /tmp and logs may take is used up", "instance", i.id, "function", i.spec.Function, "bytes", i.written.Load(), "limit", w.o.Disk)
			over -= i.written.Load() - diskReserve
		}
	}
}
