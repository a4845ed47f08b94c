package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

const (
	// ping and pings find a server that is silent within 15 s.
	ping  = 5 * time.Second
	pings = 2
	// maxBucket is the most that a bucket of records holds in bytes, and
	// maxLeases one of leases. Many of them fit into one server.
	maxBucket = 1 << 30
	maxLeases = 64 << 20
	// markers is how long a bucket remembers that a key was deleted, for those
	// who watch: they begin anew when their connection was lost, so this need
	// only be longer than an answer takes.
	markers = 10 * time.Minute
)

// Conn is a connection to the cluster. Many may use it at a time. It finds
// another server, or the same one again, for ever: meanwhile, operations wait
// up to 15 s, and then fail with ErrUnavailable.
type Conn struct {
	nats *nats.Conn
	js   jetstream.JetStream

	mu    sync.Mutex      // guards what follows
	alive context.Context // ends when the connection is lost, and is replaced
	lose  func()          // ends it

	stops sync.WaitGroup // subscriptions that are being ended
}

// Dial is DialTLS without certificates: for servers on loopback.
func Dial(ctx context.Context, url, token string) (*Conn, error) {
	return DialTLS(ctx, url, token, nil)
}

// schemeTLS begins URLs of servers that speak TLS; nats:// those of others.
const schemeTLS = "tls://"

// DialTLS connects to the servers of a cluster, whose URLs are separated by
// commas, all tls:// or all nats://. It tries until ctx ends, but gives up at once
// where the token is not the cluster's, or one side does not take the other's
// certificate. Close the connection.
func DialTLS(ctx context.Context, url, token string, secure *tls.Config) (*Conn, error) {
	c := &Conn{}
	c.alive, c.lose = context.WithCancel(context.Background())
	options := []nats.Option{
		nats.Name("thaw"), nats.UserInfo(user, secret(token, "client")),
		nats.MaxReconnects(-1), nats.ReconnectWait(pause), nats.ReconnectJitter(pause, pause),
		nats.ReconnectBufSize(-1), // what could not be sent has not been sent, and is not sent later
		nats.IgnoreAuthErrorAbort(), nats.RetryOnFailedConnect(false), nats.Timeout(attempt),
		nats.PingInterval(ping), nats.MaxPingsOutstanding(pings),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { c.disconnected() }),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // else it goes to standard error
	}
	switch isTLS := strings.HasPrefix(url, schemeTLS); {
	case isTLS && secure == nil:
		return nil, fmt.Errorf("cluster: %s takes a certificate", url)
	case isTLS:
		options = append(options, nats.Secure(secure), nats.TLSHandshakeFirst())
	}
	for {
		n, err := nats.Connect(url, options...)
		if err == nil {
			c.nats = n
			break
		}
		if errors.Is(err, nats.ErrAuthorization) {
			return nil, fmt.Errorf("cluster: %s does not take this token; is it of another fleet?", url)
		}
		if badCertificate(err) {
			return nil, fmt.Errorf("cluster: %s: certificates of one fleet, that have not expired, are wanted on both sides: %w", url, err)
		}
		if !wait(ctx, pause) {
			if errors.Is(err, nats.ErrNoServers) { // its word for that
				err = unix.ECONNREFUSED
			}
			return nil, fmt.Errorf("cluster: nobody answers at %s: %w: %v", url, ErrUnavailable, err)
		}
	}
	js, err := jetstream.New(c.nats, jetstream.WithDefaultTimeout(attempt))
	if err != nil {
		c.nats.Close()
		return nil, fmt.Errorf("cluster: %w", err)
	}
	c.js = js
	return c, nil
}

// badCertificate tells of errors that come again with the same certificates.
func badCertificate(err error) bool {
	var op *net.OpError // crypto/tls' word for what the other side says at a handshake
	return errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, &op) && op.Op == "remote error"
}

// Close ends the connection, and with it all that uses it. End watches first.
func (c *Conn) Close() {
	c.nats.Close()
	c.mu.Lock()
	c.lose()
	c.mu.Unlock()
	c.stops.Wait()
}

// JetStream gives the streams of the cluster.
func (c *Conn) JetStream() jetstream.JetStream { return c.js }

// Replicas is on how many servers a stream should be kept.
func (c *Conn) Replicas() int {
	name := c.nats.ConnectedClusterName()
	if name == "" {
		return 1
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(name, clusterName)); err == nil && n > 0 && n <= 5 {
		return n
	}
	return 3 // a cluster that is not run by us
}

// Alive gives a context that also ends when the connection is lost: nothing
// more comes over it then. Cancel it.
func (c *Conn) Alive(ctx context.Context) (context.Context, context.CancelFunc) {
	c.mu.Lock()
	alive := c.alive
	c.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(alive, func() { cancel(errBroken) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

func (c *Conn) disconnected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lose()
	c.alive, c.lose = context.WithCancel(context.Background())
}

// Records opens a bucket of durable records, and makes it if it is not there.
// Its name has letters, digits, "-" and "_".
func (c *Conn) Records(ctx context.Context, bucket string) (*Records, error) {
	b, err := c.bucket(ctx, jetstream.KeyValueConfig{
		Bucket: bucket, Storage: jetstream.FileStorage, MaxBytes: maxBucket, MaxValueSize: MaxValue + overhead, LimitMarkerTTL: markers,
	})
	if err != nil {
		return nil, err
	}
	return &Records{b}, nil
}

// Leases opens a bucket of leases that end ttl after they were taken or renewed,
// at least 100 ms, and makes it if it is not there. All who use a bucket say the
// same ttl.
func (c *Conn) Leases(ctx context.Context, bucket string, ttl time.Duration) (*Leases, error) {
	if ttl < 100*time.Millisecond { // the server's limit
		return nil, fmt.Errorf("cluster: leases %s: %v is too short", bucket, ttl)
	}
	b, err := c.bucket(ctx, jetstream.KeyValueConfig{
		Bucket: bucket, Storage: jetstream.MemoryStorage, MaxBytes: maxLeases, MaxValueSize: MaxValue + overhead, TTL: ttl, LimitMarkerTTL: time.Minute,
	})
	if err != nil {
		return nil, err
	}
	return &Leases{b, ttl}, nil
}

// bucket opens a bucket, and makes it if it is not there.
func (c *Conn) bucket(ctx context.Context, config jetstream.KeyValueConfig) (*bucket, error) {
	b := &bucket{conn: c, config: config}
	err := c.do(ctx, true, func(ctx context.Context) error {
		kv, err := b.open(ctx)
		b.kv = kv
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: bucket %s: %w", config.Bucket, err)
	}
	return b, nil
}

// Try runs an operation on JetStream until a server has answered it, for 15 s
// at most; then it returns ErrUnavailable, as it does where the server has no
// room. The operation may be done more than once.
func (c *Conn) Try(ctx context.Context, op func(context.Context) error) error {
	return c.do(ctx, true, op)
}

// do runs an operation until a server has answered it. What no server has seen
// is tried again, and so is what may be done twice.
func (c *Conn) do(ctx context.Context, again bool, op func(context.Context) error) error {
	all, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := c.try(all, op)
		var api *jetstream.APIError
		switch {
		case err == nil || final(err):
			return err
		case errors.As(err, &api) && !unseen(err): // an answer: no room, for one
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case !unseen(err) && !again, !wait(all, pause):
			if ctx.Err() != nil {
				err = errors.Join(context.Cause(ctx), err)
			}
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// try runs an operation once. It does not wait for an answer over a connection
// that is lost.
func (c *Conn) try(ctx context.Context, op func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	ctx, forget := c.Alive(ctx)
	defer forget()
	return op(ctx)
}

// unseen tells of errors after which nothing can have been done.
func unseen(err error) bool {
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, jetstream.ErrStreamNotFound) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrConnectionReconnecting) || busy(err)
}

// busy tells of answers by which a server sends us away for now.
func busy(err error) bool {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch api.ErrorCode {
	case 10008, // no leader of the cluster
		10009, // not the leader
		10039, // JetStream is not there yet
		10005, // not enough servers yet
		10074: // no majority that could keep the stream
		return true
	}
	return api.Code == 503 && api.ErrorCode != 10077 // which is: no room
}

// final tells of errors that another try would meet too.
func final(err error) bool {
	for _, e := range []error{ErrNotFound, ErrExists, ErrConflict, ErrUnavailable, ErrLost, errRefused,
		nats.ErrConnectionClosed, nats.ErrMaxPayload, jetstream.ErrInvalidBucketName, jetstream.ErrInvalidKey} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// errRefused wraps what only other arguments would change.
var errRefused = errors.New("refused")

// wait lets d pass and tells whether ctx goes on.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
