package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// forwardFile is the switch: whether this namespace passes packets on.
const forwardFile = "/proc/sys/net/ipv4/ip_forward"

// forwardRecord tells who needs forwarding in one namespace of the host, and
// what it was before the first of them. It is written before the switch is.
type forwardRecord struct {
	Boot   string            `json:"boot"`
	Before string            `json:"before"` // "0" or "1"
	Users  map[string]string `json:"users"`  // by state folder's hash: the lock that a process that lives holds
}

// maxRecord bounds a record: each of its users has 100 bytes.
const maxRecord = 64 << 10

// holdForwarding switches forwarding on until releaseForwarding.
func holdForwarding(n *names) error {
	return withForwarding(n, func(r *forwardRecord) error {
		r.Users[n.hash] = lockFile(n.run)
		return nil
	})
}

// releaseForwarding says that a state folder does not need it any more, nor
// those whose process has died. With the last the switch is put back.
func releaseForwarding(n *names) error {
	return withForwarding(n, func(r *forwardRecord) error {
		delete(r.Users, n.hash)
		return nil
	})
}

// withForwarding changes the record, and does what it then says.
func withForwarding(n *names, change func(*forwardRecord) error) error {
	name, err := recordName(n)
	if err != nil {
		return err
	}
	lock, err := os.Open(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("forwarding: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("forwarding: %s: %w", lock.Name(), err)
	}
	r, err := readForwarding(name)
	if err != nil {
		return err
	}
	if err := change(r); err != nil {
		return err
	}
	for hash, lock := range r.Users {
		if hash != n.hash && !held(lock) {
			delete(r.Users, hash)
		}
	}
	return r.apply(name)
}

// recordName is the record's file, one for each namespace that a host's
// processes may be in: its cookie is never used again until the machine boots.
func recordName(n *names) (string, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return "", os.NewSyscallError("cookie of the network namespace", err)
	}
	return filepath.Join(filepath.Dir(n.run), fmt.Sprintf("forwarding-%x.json", cookie)), nil
}

// readForwarding reads a record, or begins one.
func readForwarding(name string) (*forwardRecord, error) {
	boot, err := word("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	r := &forwardRecord{}
	data, err := os.ReadFile(name)
	switch {
	case err == nil && len(data) > maxRecord:
		err = fmt.Errorf("it has %d bytes", len(data))
	case err == nil:
		err = json.Unmarshal(data, r)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("forwarding: record %s: %w: set %s as it should be, and remove the record", name, err, forwardFile)
	}
	if r.Boot == boot && (r.Before == "0" || r.Before == "1") && r.Users != nil {
		return r, nil
	}
	before, err := word(forwardFile)
	return &forwardRecord{Boot: boot, Before: before, Users: map[string]string{}}, err
}

// apply writes the record and the switch: with users it is on, without it is as
// it was.
func (r *forwardRecord) apply(name string) error {
	want := "1"
	if len(r.Users) == 0 {
		want = r.Before
	} else if err := r.write(name); err != nil {
		return fmt.Errorf("forwarding: %w", err)
	}
	now, err := word(forwardFile)
	if err == nil && now != want {
		err = os.WriteFile(forwardFile, []byte(want), 0)
	}
	if err == nil && len(r.Users) == 0 {
		if err = os.Remove(name); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("forwarding: %w", err)
	}
	return nil
}

func (r *forwardRecord) write(name string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// held tells whether a process that lives holds a lock.
func held(lock string) bool {
	f, err := os.Open(lock)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// word reads a file of one word.
func word(name string) (string, error) {
	data, err := os.ReadFile(name)
	return strings.TrimSpace(string(data)), err
}
