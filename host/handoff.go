package host

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
)

// Order is what thaw wants of the program that keeps an instance, and what that
// reports of the start: order.json. It holds no secret.
type Order struct {
	Runtime     string             `json:"runtime,omitempty"` // name or path; "" = the best
	Interactive bool               `json:"interactive,omitempty"`
	Writable    bool               `json:"writable,omitempty"` // of a mount
	StatsFile   string             `json:"statsFile,omitempty"`
	Began       time.Time          `json:"began"`
	Stages      map[string]float64 `json:"stages"` // ms
	DeviceBytes int64              `json:"deviceBytes"`
	ImageBytes  int64              `json:"imageBytes"` // of all chunks
	Before      cache.Stats        `json:"before"`     // what the agent had read for others

	KeepTrace    []string `json:"keepTrace,omitempty"`    // command that takes the trace of this start, if it is recorded
	Ready        string   `json:"ready,omitempty"`        // text of the output that ends the recording; "" = the program's end does
	TraceDamaged bool     `json:"traceDamaged,omitempty"` // so that it could not be used
}

// Give leaves the order for who will keep the instance.
func (i *Instance) Give(o Order) error { return writeRecord(i.Dir("order.json"), o) }

// Order reads what Give left. Its Stages can be added to.
func (i *Instance) Order() (Order, error) {
	var o Order
	err := readRecord(i.Dir("order.json"), &o)
	if o.Stages == nil {
		o.Stages = map[string]float64{}
	}
	return o, err
}

// Handoff gives the arguments with which a program, executed in the place of
// this one, keeps the instance, its image and fetcher: Resume reads them.
func Handoff(i *Instance, image, fetcher *Use) ([]string, error) {
	args := []string{i.host.state, i.ID}
	for _, f := range []*os.File{i.lock, image.users, fetcher.users} {
		if err := inherit(f); err != nil {
			return nil, err
		}
		args = append(args, strconv.Itoa(int(f.Fd())))
	}
	return args, nil
}

// Resume takes over what Handoff passed on.
func Resume(args []string) (i *Instance, image, fetcher *Use, err error) {
	if len(args) != 5 {
		return nil, nil, nil, fmt.Errorf("%d arguments: this program is started by thaw", len(args))
	}
	h, err := Open(args[0])
	if err != nil {
		return nil, nil, nil, err
	}
	var files [3]*os.File
	for n := range files {
		fd, err := strconv.Atoi(args[2+n])
		if err != nil || fd < 3 {
			return nil, nil, nil, fmt.Errorf("descriptor %q: this program is started by thaw", args[2+n])
		}
		unix.CloseOnExec(fd)
		files[n] = os.NewFile(uintptr(fd), "lock")
	}
	if i, err = h.readInstance(args[1]); err != nil {
		return nil, nil, nil, err
	}
	i.lock = files[0]
	return i, h.resume("images", i.ImageOf, files[1]), h.resume("fetchers", i.Fetcher, files[2]), nil
}

func (h *Host) resume(kind, key string, users *os.File) *Use {
	return &Use{kind: kind, key: key, lockPath: h.dir(kind, key+".lock"), users: users}
}

// Host gives the host that the instance runs on.
func (i *Instance) Host() *Host { return i.host }
