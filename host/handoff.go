package host

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

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
	i = &Instance{}
	if err := readRecord(h.dir("instances", args[1], "instance.json"), i); err != nil {
		return nil, nil, nil, err
	}
	i.host, i.lock = h, files[0]
	return i, h.resume("images", i.ImageOf, files[1]), h.resume("fetchers", i.Fetcher, files[2]), nil
}

func (h *Host) resume(kind, key string, users *os.File) *Use {
	return &Use{kind: kind, key: key, lockPath: h.dir(kind, key+".lock"), users: users}
}

// Host gives the host that the instance runs on.
func (i *Instance) Host() *Host { return i.host }
