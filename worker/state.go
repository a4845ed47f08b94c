package worker

import (
	"errors"
	"runtime"
	"slices"
	"time"

	"thaw/invokewire"
)

var (
	errExists = errors.New("an instance of that id is there already")
	errMemory = errors.New("no memory for another instance")
	errDisk   = errors.New("no disk for the /tmp of another instance: see the worker's --disk")
	errClosed = errors.New("the worker takes no instances")
)

const (
	// reserve is what an instance is counted for, in bytes, before it was measured:
	// what a small runtime takes with its init.
	reserve = 64 << 20
	// firstUser is the first tenant's user inside of instances, above those that
	// images know.
	firstUser = 100000
)

// start admits a start.
func (w *Worker) start(s invokewire.Start) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.open:
		return errClosed
	case w.instances[s.ID] != nil:
		return errExists
	case w.used()+min(reserve, int64(s.Spec.Memory)<<20) > w.o.Memory:
		return errMemory
	case w.disk()+diskReserve > w.o.Disk:
		w.tellFull(time.Now())
		return errDisk
	}
	i, err := w.newInstance(s)
	if err != nil {
		return err
	}
	if err := w.admission.add(i); err != nil {
		i.log.close()
		return err
	}
	w.instances[s.ID] = i
	return nil
}

// used is the memory that instances take, as far as it was measured. mu is held.
func (w *Worker) used() (bytes int64) {
	for _, i := range w.instances {
		bytes += i.used.Load()
	}
	return bytes
}

func (w *Worker) find(id string) *instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.instances[id]
}

func (w *Worker) forget(i *instance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.instances, i.id)
}

// userOf gives the user that a tenant's functions run as: no two tenants have the
// same.
func (w *Worker) userOf(tenant string) uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, ok := w.users[tenant]
	if !ok {
		id = firstUser + uint32(len(w.users))
		w.users[tenant] = id
	}
	return id
}

// state is what the worker says of itself.
func (w *Worker) state(instances bool) invokewire.WorkerState {
	running, queued := w.admission.counts()
	w.mu.Lock()
	s := invokewire.WorkerState{
		ID: w.o.ID, Address: w.o.Address, Started: w.started, Cores: runtime.NumCPU(), Memory: w.o.Memory, Used: w.used(), Disk: w.o.Disk, DiskUsed: w.disk(),
		Queued: queued, Running: running, Slots: w.slots.count(), Draining: !w.open, Starts: w.history.byKind(),
	}
	var all []*instance
	if instances {
		for _, i := range w.instances {
			all = append(all, i)
		}
	}
	w.mu.Unlock()
	for _, i := range all {
		s.Instances = append(s.Instances, i.state())
	}
	slices.SortFunc(s.Instances, func(a, b invokewire.InstanceState) int { return a.Since.Compare(b.Since) })
	return s
}
