package host

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"thaw/agent"
	"thaw/mount"
)

// Attached names what of this state the kernel holds: agents that live, mounts,
// loop devices. Whoever measures a start from nothing wants none.
func (h *Host) Attached() (all []string, err error) {
	keys, err := h.keys("images")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, key := range keys {
		var r imageRecord
		if err := readRecord(h.dir("images", key, "image.json"), &r); err == nil && r.Process.alive() {
			all = append(all, "agent of image "+r.ID)
		} else if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	mounts, err := mount.Under(h.run)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		all = append(all, "mount "+m.Dir)
	}
	for _, dir := range []string{h.run, filepath.Join(h.state, "overlays")} {
		loops, err := mount.Loops(dir)
		if err != nil {
			return nil, err
		}
		for _, l := range loops {
			all = append(all, "loop device "+l)
		}
	}
	return all, nil
}

// DialFetcher connects to a fetcher in use, as cache.ClientOptions want it.
func (h *Host) DialFetcher(ctx context.Context, u *Use) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", h.dir("fetchers", u.key, agent.SocketName))
}
