package builder

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"
)

const (
	// dockerSocket is where docker's daemon listens on Linux.
	dockerSocket = "/var/run/docker.sock"
	// dockerWait is how long the daemon may take before it sends anything: it
	// gathers the layers first.
	dockerWait = 5 * time.Minute
	// archiveExtra is what an archive may have beside its layers, in bytes: their
	// tars' own padding, manifests and configs.
	archiveExtra = 64 << 20
)

// saveDocker has the docker daemon write an image into a new file, as docker
// save does.
func (m *Images) saveDocker(ctx context.Context, name, file string) error {
	socket := cmp.Or(m.DockerSocket, dockerSocket)
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, ResponseHeaderTimeout: dockerWait,
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/images/"+url.PathEscape(name)+"/get", nil)
	if err != nil {
		return Refuse(InvalidImage, "%s is no image's name.", show(name))
	}
	resp, err := (&http.Client{Transport: t}).Do(r)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return Refuse(ImageDeleted, "No docker daemon listens at %s: push the image to a registry.", socket)
	}
	if err != nil {
		return fmt.Errorf("ask the docker daemon for %s: %w", show(name), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return dockerRefusal(name, resp)
	}
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	most := m.maxImage() + archiveExtra
	n, err := io.Copy(out, io.LimitReader(resp.Body, most+1))
	if err == nil && n > most {
		return Refuse(InvalidImage, "The image %s has more than %d bytes, which is the most that this region takes (--max-image).", show(name), m.maxImage())
	}
	if err == nil {
		err = out.Close()
	}
	if err != nil {
		return fmt.Errorf("save %s from the docker daemon: %w", show(name), err)
	}
	return nil
}

// dockerRefusal words what the daemon answers in place of an image.
func dockerRefusal(name string, resp *http.Response) error {
	var said struct{ Message string }
	_ = json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&said) // else it says nothing
	if resp.StatusCode == http.StatusNotFound {
		return Refuse(ImageDeleted, "The docker daemon has no image %s.", show(name))
	}
	return fmt.Errorf("the docker daemon answers %d %s for %s", resp.StatusCode, show(said.Message), show(name))
}
