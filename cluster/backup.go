package cluster

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A backup is a tar stream: for each stream of the cluster on disk, in this order,
//
//	NAME/stream.json   its configuration and state, as the server gives them
//	NAME/00000001 …    the server's own snapshot of it, in pieces of at most 1 MiB
//
// and at the end
//
//	sha256             of all names and contents before it, in hex, each followed by its length as 8 digits of hex
const (
	entryStream = "stream.json"
	entrySum    = "sha256"
	// maxPiece is the server's limit for pieces of a snapshot; maxInfo is far
	// more than a stream's configuration takes.
	maxPiece = 1 << 20
	maxInfo  = 1 << 20
	// piece is what we ask for: it fits into a message with room to spare.
	piece = 256 << 10
	// silence is how long a server may take for one step of a backup: it checks
	// and compacts what it has first.
	silence = time.Minute

	apiSnapshot = "$JS.API.STREAM.SNAPSHOT."
	apiRestore  = "$JS.API.STREAM.RESTORE."
)

// ErrBackup says that a stream of bytes is no backup, or not a whole one.
var ErrBackup = errors.New("not a whole backup")

// streamInfo is what the server says of a stream, passed on as it is.
type streamInfo struct {
	Config json.RawMessage `json:"config"`
	State  json.RawMessage `json:"state"`
}

// Backup writes all that the cluster has on disk: records, and streams with
// their consumers; no leases. Each stream is as it was at one moment, but not
// all at the same. Others go on writing meanwhile.
func (s *Server) Backup(ctx context.Context, w io.Writer) error {
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Backup(ctx, w)
}

// Backup is as that of Server.
func (c *Conn) Backup(ctx context.Context, w io.Writer) error {
	streams, err := c.durable(ctx)
	if err != nil {
		return err
	}
	t := &tarWriter{tar.NewWriter(w), sha256.New()}
	for _, name := range streams {
		if err := c.backupStream(ctx, name, t); err != nil {
			return fmt.Errorf("cluster: back up %s: %w", name, err)
		}
	}
	if err := t.add(entrySum, []byte(hex.EncodeToString(t.sum.Sum(nil)))); err != nil {
		return fmt.Errorf("cluster: back up: %w", err)
	}
	if err := t.tar.Close(); err != nil {
		return fmt.Errorf("cluster: back up: %w", err)
	}
	return nil
}

// durable gives the names of all streams on disk.
func (c *Conn) durable(ctx context.Context) (names []string, err error) {
	err = c.do(ctx, true, func(ctx context.Context) error {
		names = nil
		list := c.js.ListStreams(ctx)
		for info := range list.Info() {
			if info.Config.Storage == jetstream.FileStorage {
				names = append(names, info.Config.Name)
			}
		}
		return list.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: list streams: %w", err)
	}
	return names, nil
}

func (c *Conn) backupStream(ctx context.Context, name string, t *tarWriter) error {
	sub, err := c.nats.SubscribeSync(c.nats.NewInbox())
	if err != nil {
		return err
	}
	defer sub.Unsubscribe() // fails only if the connection is closed
	request, err := json.Marshal(map[string]any{"deliver_subject": sub.Subject, "chunk_size": piece})
	if err != nil {
		return err
	}
	var info streamInfo
	if err := c.api(ctx, apiSnapshot+name, request, &info); err != nil {
		return err
	}
	head, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if err := t.add(name+"/"+entryStream, head); err != nil {
		return err
	}
	for n := 1; ; n++ {
		m, err := next(ctx, sub)
		if err != nil {
			return err
		}
		if status := m.Header.Get("Status"); status != "" && status != "204" && status != "200" {
			return fmt.Errorf("%w: the server says %s %s", ErrUnavailable, status, m.Header.Get("Description"))
		}
		if len(m.Data) == 0 {
			return nil
		}
		if err := t.add(fmt.Sprintf("%s/%08d", name, n), m.Data); err != nil {
			return err
		}
		if m.Reply != "" {
			if err := m.Respond(nil); err != nil {
				return err
			}
		}
	}
}

func next(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	m, err := sub.NextMsgWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return m, nil
}

// api asks the server something, until there is one that can answer.
func (c *Conn) api(ctx context.Context, subject string, request []byte, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	m, err := c.nats.RequestWithContext(ctx, subject, request)
	for err != nil && unseen(err) && wait(ctx, pause) {
		m, err = c.nats.RequestWithContext(ctx, subject, request)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var failed struct{ Error *jetstream.APIError }
	if err := json.Unmarshal(m.Data, &failed); err != nil {
		return err
	}
	if failed.Error != nil {
		return failed.Error
	}
	return json.Unmarshal(m.Data, answer)
}

// Restore makes the folder of a server from a backup. The folder must not be
// there, or be empty, and is there only if all went well.
func Restore(ctx context.Context, dir string, r io.Reader) error {
	dir = strings.TrimRight(dir, "/")
	if found, err := os.ReadDir(dir); err == nil && len(found) > 0 {
		return fmt.Errorf("cluster: restore: %s is not empty; move it away first", dir)
	}
	work := dir + ".restoring"
	if err := os.RemoveAll(work); err != nil { // of a former try
		return fmt.Errorf("cluster: restore: %w", err)
	}
	err := restoreInto(ctx, work, r)
	if err == nil {
		err = os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			err = os.Rename(work, dir)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cluster: restore %s: %w", dir, err), os.RemoveAll(work))
	}
	return nil
}

// restoreInto has a server of its own read the backup.
func restoreInto(ctx context.Context, dir string, r io.Reader) (err error) {
	s, err := Serve(ctx, ServerOptions{Dir: dir, Token: rand.Text()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Restore(ctx, r)
}

// Restore puts a backup into a running cluster that has nothing on disk yet, as
// a new cluster of several servers. What fails halfway leaves some streams.
func (c *Conn) Restore(ctx context.Context, r io.Reader) error {
	there, err := c.durable(ctx)
	if err != nil {
		return err
	}
	if len(there) > 0 {
		return fmt.Errorf("cluster: restore: the cluster has %s already; restore into a new one", there[0])
	}
	t := &tarReader{tar.NewReader(r), sha256.New()}
	name, data, err := t.next()
	for err == nil && name != entrySum {
		stream, ok := strings.CutSuffix(name, "/"+entryStream)
		if !ok || !regexp.MustCompile(`^[A-Za-z0-9_-]{1,200}$`).MatchString(stream) {
			return fmt.Errorf("cluster: restore: %w: entry %.80q is not expected here", ErrBackup, name)
		}
		name, data, err = c.restoreStream(ctx, stream, data, t)
	}
	if err != nil {
		return fmt.Errorf("cluster: restore: %w", err)
	}
	return nil
}

// restoreStream restores one stream and returns the first entry after it.
func (c *Conn) restoreStream(ctx context.Context, stream string, head []byte, t *tarReader) (string, []byte, error) {
	request, err := c.adapt(head)
	if err != nil {
		return "", nil, err
	}
	var to struct {
		Subject string `json:"deliver_subject"`
	}
	if err := c.api(ctx, apiRestore+stream, request, &to); err != nil {
		return "", nil, err
	}
	for n := 1; ; n++ {
		name, data, err := t.next()
		if err != nil {
			c.push(ctx, to.Subject, nil) // else the server waits for more; what it says to a part does not matter
			return "", nil, err
		}
		if name != fmt.Sprintf("%s/%08d", stream, n) {
			return name, data, c.push(ctx, to.Subject, nil)
		}
		if err := c.push(ctx, to.Subject, data); err != nil {
			return "", nil, err
		}
	}
}

// push sends one piece, or none: that is the end. The answer is empty, or an
// error, or what was restored.
func (c *Conn) push(ctx context.Context, subject string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	m, err := c.nats.RequestWithContext(ctx, subject, data)
	for late := time.Now().Add(attempt); errors.Is(err, nats.ErrNoResponders) && time.Now().Before(late) && wait(ctx, pause); {
		m, err = c.nats.RequestWithContext(ctx, subject, data) // our server had not heard yet of who takes it
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var failed struct{ Error *jetstream.APIError }
	if len(m.Data) > 0 && json.Unmarshal(m.Data, &failed) == nil && failed.Error != nil {
		return fmt.Errorf("%w: %w", ErrBackup, failed.Error)
	}
	return nil
}

// adapt sets the number of copies that this cluster keeps.
func (c *Conn) adapt(head []byte) ([]byte, error) {
	var info struct {
		Config map[string]any  `json:"config"`
		State  json.RawMessage `json:"state"`
	}
	if err := json.Unmarshal(head, &info); err != nil || info.Config == nil {
		return nil, fmt.Errorf("%w: a stream's description is no JSON", ErrBackup)
	}
	info.Config["num_replicas"] = c.Replicas()
	return json.Marshal(info)
}

// tarWriter writes entries and sums them.
type tarWriter struct {
	tar *tar.Writer
	sum hash.Hash
}

func (t *tarWriter) add(name string, data []byte) error {
	sumEntry(t.sum, name, data)
	if err := t.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := t.tar.Write(data)
	return err
}

// tarReader reads what tarWriter wrote.
type tarReader struct {
	tar *tar.Reader
	sum hash.Hash
}

// next reads an entry. The last one is returned only if the sum is right.
func (t *tarReader) next() (string, []byte, error) {
	h, err := t.tar.Next()
	if err != nil { // io.EOF too: the sum is missing
		return "", nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	if h.Typeflag != tar.TypeReg || h.Size > max(maxPiece, maxInfo) {
		return "", nil, fmt.Errorf("%w: entry %.80q", ErrBackup, h.Name)
	}
	data, err := io.ReadAll(t.tar)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrBackup, err)
	}
	if h.Name == entrySum && string(data) != hex.EncodeToString(t.sum.Sum(nil)) {
		return "", nil, fmt.Errorf("%w: its sum is wrong", ErrBackup)
	}
	sumEntry(t.sum, h.Name, data)
	return h.Name, data, nil
}

func sumEntry(h hash.Hash, name string, data []byte) {
	for _, b := range [][]byte{[]byte(name), data} {
		h.Write(b)
		fmt.Fprintf(h, "%08x", len(b))
	}
}
