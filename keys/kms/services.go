package kms

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/middleware"
	gcaws "gocloud.dev/aws"
	"gocloud.dev/gcp"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/awskms"
	"gocloud.dev/secrets/azurekeyvault"
	"gocloud.dev/secrets/gcpkms"

	"thaw/keys"
)

// Open opens the key of an awskms, gcpkms, azurekeyvault or hashivault URL, as
// package keys tells them, without calling the service. (Google's library asks
// the machine's own metadata address for credentials if it finds none.) The
// Keeper is an io.Closer. Open is to be given to keys.WithDriver.
func Open(ctx context.Context, u *url.URL) (keys.Keeper, error) {
	s, err := openService(ctx, u)
	if err != nil {
		return nil, oneLine(err)
	}
	return &remote{scheme: u.Scheme, service: s}, nil
}

func openService(ctx context.Context, u *url.URL) (service, error) {
	key := strings.TrimPrefix(path.Join(u.Host, u.Path), "/")
	known := slices.Contains([]string{awskms.Scheme, gcpkms.Scheme, azurekeyvault.Scheme, vaultScheme}, u.Scheme)
	if known && (key == "" || strings.HasPrefix(key, "..")) {
		return nil, fmt.Errorf("its URL names no key: want %s://KEY", u.Scheme)
	}
	switch u.Scheme {
	case awskms.Scheme:
		return openAWS(ctx, key, u.Query())
	case gcpkms.Scheme:
		return openGoogle(ctx, key, u.Query())
	case azurekeyvault.Scheme:
		return openAzure(ctx, u)
	case vaultScheme:
		return openVault(key, u.Query())
	}
	return nil, errors.New("no such service: use awskms, gcpkms, azurekeyvault or hashivault")
}

// openAWS takes the parameters of gocloud.dev/aws.V2ConfigFromURLParams:
// region, profile, endpoint, role and others, none of them secret.
func openAWS(ctx context.Context, key string, query url.Values) (service, error) {
	if e := query.Get("endpoint"); e != "" {
		if err := checkEndpoint(e); err != nil {
			return nil, err
		}
	}
	config, err := gcaws.V2ConfigFromURLParams(ctx, query)
	if err != nil {
		return nil, err
	}
	client := kms.NewFromConfig(config, func(o *kms.Options) {
		o.APIOptions = append(o.APIOptions, bindKey(key))
	})
	return awskms.OpenKeeper(client, key, nil), nil
}

// bindKey names the key in every Decrypt. Without a name AWS takes whichever
// key the caller may use and the value was wrapped by, so that one tenant's
// Keeper would open another's values.
func bindKey(key string) func(*middleware.Stack) error {
	bind := func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
		if d, ok := in.Parameters.(*kms.DecryptInput); ok {
			d.KeyId = &key
		}
		return next.HandleInitialize(ctx, in)
	}
	return func(s *middleware.Stack) error {
		return s.Initialize.Add(middleware.InitializeMiddlewareFunc("BindKey", bind), middleware.Before)
	}
}

// checkEndpoint lets secrets leave the machine by TLS only.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil {
		return errors.New("its endpoint is no URL of a server: want https://HOST")
	}
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && !(u.Scheme == "http" && local) {
		return errors.New("its endpoint would show keys to the network: want https://")
	}
	return nil
}

// closing is a Keeper with a client of its own.
type closing struct {
	*secrets.Keeper
	client func()
}

// Close closes both.
func (c closing) Close() error {
	err := c.Keeper.Close()
	c.client()
	return err
}

func openGoogle(ctx context.Context, key string, query url.Values) (service, error) {
	if len(query) > 0 {
		return nil, errors.New("its URL has parameters: it takes none")
	}
	ctx = context.WithoutCancel(ctx) // the credentials live on in the client
	creds, err := gcp.DefaultCredentials(ctx)
	if err != nil {
		return nil, err
	}
	client, closeClient, err := gcpkms.Dial(ctx, creds.TokenSource)
	if err != nil {
		return nil, err
	}
	return closing{gcpkms.OpenKeeper(client, key, nil), closeClient}, nil
}

// azureKey has the version: RSA does not tell which version wrapped a value,
// so without it the first rotation would close everything older.
var azureKey = regexp.MustCompile(`^/keys/[0-9A-Za-z-]+/[0-9A-Za-z]+$`)

// openAzure uses RSA-OAEP-256 only: RSA1_5 is broken, and what is left would
// need an own nonce.
func openAzure(ctx context.Context, u *url.URL) (service, error) {
	if u.RawQuery != "" || !azureKey.MatchString(u.Path) {
		return nil, errors.New("its URL is not azurekeyvault://VAULT.vault.azure.net/keys/KEY/VERSION, without parameters")
	}
	opener := azurekeyvault.URLOpener{ClientMaker: azurekeyvault.DefaultClientMaker}
	keeper, err := opener.OpenKeeperURL(ctx, u)
	if err != nil {
		return nil, err
	}
	return keeper, nil
}
