package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// dialTimeout and headerTimeout bound a connection and an answer's first
	// byte; registries that fetch from behind take their time for the latter.
	dialTimeout   = 15 * time.Second
	headerTimeout = 60 * time.Second
	// maxRedirects is net/http's own.
	maxRedirects = 10
)

// acceptManifests is what we ask for. Schema 1 is in it, last, so that a
// registry which has nothing else says so and it can be refused by name.
const acceptManifests = types.OCIImageIndex + ", " + types.DockerManifestList + ", " +
	types.OCIManifestSchema1 + ", " + types.DockerManifestSchema2 + ", " +
	types.DockerManifestSchema1Signed + ", " + types.DockerManifestSchema1

// repository is a store over one repository of a registry. Requests pass, from
// the outside in:
//
//	client (redirects) → the library's authentication → retrier → fixedScheme → base
//
// so that a repetition does not authenticate again, and a token server's hiccup
// is repeated too. It is safe for concurrent use.
type repository struct {
	repo   name.Repository
	scheme string
	client *http.Client
	base   *http.Transport
	delay  time.Duration // before the first retry
	own    bool          // credentials are the caller's, not the docker config's
}

// openRegistry opens the image of a reference.
func openRegistry(ctx context.Context, ref string, want platform, opt Options) (*Image, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("no reference such as debian:12 or host:5000/name@sha256:… (%s): %w", oneLine(err.Error()), ErrUnsupported)
	}
	if d, ok := parsed.(name.Digest); ok && !strings.HasPrefix(d.DigestStr(), "sha256:") {
		return nil, fmt.Errorf("digest of another kind than sha256: %w", ErrUnsupported)
	}
	g, err := newRepository(ctx, parsed.Context(), opt)
	if err != nil {
		return nil, err
	}
	img, err := g.image(ctx, parsed, want)
	if err != nil {
		g.Close()
	}
	return img, err
}

// credentials are the caller's, or those that the docker config (or podman's) has.
func credentials(ctx context.Context, repo name.Repository, opt Options) (authn.Authenticator, error) {
	if opt.Login == nil {
		auth, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
		if err != nil {
			return nil, fmt.Errorf("credentials for %s from the docker config: %s", repo.RegistryStr(), firstLine(err))
		}
		return auth, nil
	}
	user, password, err := opt.Login(ctx, repo.RegistryStr())
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", repo.RegistryStr(), err)
	}
	if user == "" {
		return authn.Anonymous, nil
	}
	return &authn.Basic{Username: user, Password: password}, nil
}

// newRepository shakes hands with a registry.
func newRepository(ctx context.Context, repo name.Repository, opt Options) (*repository, error) {
	g := &repository{repo: repo, scheme: "https", delay: opt.retryDelay, own: opt.Login != nil}
	if g.delay == 0 {
		g.delay = firstDelay
	}
	if opt.PlainHTTP {
		g.scheme = "http"
	}
	auth, err := credentials(ctx, repo, opt)
	if err != nil {
		return nil, err
	}
	g.base = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       headerTimeout,
		MaxIdleConnsPerHost:   8,    // layers read at a time, roughly
		DisableCompression:    true, // digests are of the bytes as stored
	}
	var rt http.RoundTripper = fixedScheme{g.base, repo.RegistryStr(), g.scheme}
	rt = transport.NewUserAgent(retrier{rt, g.delay}, "thaw")
	rt, err = transport.NewWithContext(ctx, repo.Registry, auth, rt, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		g.Close()
		return nil, g.explain(ctx, err)
	}
	g.client = &http.Client{Transport: rt, CheckRedirect: g.checkRedirect}
	return g, nil
}

// fixedScheme speaks to one host by one scheme. The library would try plain
// HTTP for hosts that look local, and fall back to it.
type fixedScheme struct {
	inner        http.RoundTripper
	host, scheme string
}

// RoundTrip is http.RoundTripper's.
func (t fixedScheme) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == t.host && req.URL.Scheme != t.scheme {
		req = req.Clone(req.Context())
		req.URL.Scheme = t.scheme
	}
	return t.inner.RoundTrip(req)
}

// checkRedirect keeps a registry from leading us off TLS, or to the link-local
// addresses where clouds keep a machine's credentials.
func (g *repository) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Scheme != "https" && req.URL.Scheme != g.scheme {
		return fmt.Errorf("redirect to %s:, which is not asked for", oneLine(req.URL.Scheme))
	}
	if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil && ip.Unmap().IsLinkLocalUnicast() {
		return fmt.Errorf("redirect to the link-local address %s", ip)
	}
	return nil
}

// image reads the manifest of a reference and resolves it. A tag's digest is what
// its bytes give: the header in which registries state it is often wrong.
func (g *repository) image(ctx context.Context, ref name.Reference, want platform) (*Image, error) {
	resp, err := g.get(ctx, "manifests/"+ref.Identifier(), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := readBounded(resp.Body, "manifest")
	if err != nil {
		return nil, err
	}
	desc := v1.Descriptor{MediaType: contentType(resp), Size: int64(len(body))}
	if desc.Digest, err = v1.NewHash(digestOf(body)); err != nil {
		return nil, err
	}
	if _, byDigest := ref.(name.Digest); byDigest && ref.Identifier() != desc.Digest.String() {
		return nil, fmt.Errorf("manifest has digest %s: %w", desc.Digest, ErrCorrupt)
	}
	doc, err := newDocument(desc, body)
	if err != nil {
		return nil, err
	}
	r := &resolver{store: g, want: want}
	return r.image(ctx, doc, false)
}

// contentType gives a registry's word for what a manifest is; plain servers of
// files have none worth hearing.
func contentType(resp *http.Response) types.MediaType {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(t, "application/vnd.") {
		return ""
	}
	return types.MediaType(t)
}

// manifest is store.manifest.
func (g *repository) manifest(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	resp, err := g.get(ctx, "manifests/"+d.Digest.String(), nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// blob is store.blob. The first request is made at once, so that what is
// missing is told now.
func (g *repository) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	b := &download{ctx: ctx, from: g, path: "blobs/" + d.Digest.String(), size: d.Size}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// Close drops idle connections; readers still open keep theirs.
func (g *repository) Close() error {
	g.base.CloseIdleConnections()
	return nil
}

// get asks for a manifest or blob of the repository. The caller closes the
// body, of status 200 or, where header asks for a range, maybe 206.
func (g *repository) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	u := url.URL{Scheme: g.scheme, Host: g.repo.RegistryStr(), Path: "/v2/" + g.repo.RepositoryStr() + "/" + path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if strings.HasPrefix(path, "manifests/") {
		req.Header.Set("Accept", string(acceptManifests))
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return nil, g.explain(ctx, err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %w", path, g.explain(ctx, err))
	}
	return resp, nil
}

// explain turns an error of the transport into one line with what to do. URLs
// lose their query, which can hold a signature, and bodies are cut.
func (g *repository) explain(ctx context.Context, err error) error {
	host := g.repo.RegistryStr()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", host, context.Cause(ctx))
	}
	var status *transport.Error
	if errors.As(err, &status) {
		return g.explainStatus(status)
	}
	var failed *url.Error
	if errors.As(err, &failed) {
		err = failed.Err
	}
	text := firstLine(err)
	if strings.Contains(text, "server gave HTTP response to HTTPS client") {
		return fmt.Errorf("%s speaks plain HTTP; --plain-http allows that", host)
	}
	return fmt.Errorf("%s: %s", host, text)
}

// explainStatus words a registry's refusal. Of the answer's body only the first
// error's code and message are quoted, if it has that form: a proxy's HTML page
// helps nobody.
func (g *repository) explainStatus(e *transport.Error) error {
	host, repo := g.repo.RegistryStr(), g.repo.RepositoryStr()
	code := fmt.Sprintf("%d %s", e.StatusCode, http.StatusText(e.StatusCode))
	switch e.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if g.own {
			return fmt.Errorf("%s answers %s for %s: no such image, or the credentials known for %s do not allow it: %w", host, code, repo, host, ErrUnauthorized)
		}
		return fmt.Errorf("%s answers %s for %s: no such image, or the docker config's credentials do not allow it (docker login %s): %w", host, code, repo, host, ErrUnauthorized)
	case http.StatusNotFound:
		return fmt.Errorf("%s does not have it in %s: %w", host, repo, ErrNotFound)
	}
	if len(e.Errors) > 0 {
		code += " (" + oneLine(string(e.Errors[0].Code)+" "+e.Errors[0].Message) + ")"
	}
	return fmt.Errorf("%s answers %s", host, code)
}

// firstLine is an error's first line: the library puts answers, which may hold
// tokens, on the next.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return oneLine(line)
}
