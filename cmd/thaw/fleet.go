//go:build cloud

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"golang.org/x/sys/unix"

	"thaw/sdkhttp"
)

// fleetRecord is how the platform that runs is reached.
type fleetRecord struct {
	Endpoint string `json:"endpoint"` // URL of the Lambda API
	Cluster  string `json:"cluster"`  // URL of the records' server
	Registry string `json:"registry"` // host:port
	Region   string `json:"region"`
	Account  string `json:"account"`
	Zone     string `json:"zone,omitempty"` // as --zone has it
	CA       string `json:"ca,omitempty"`   // file with the authority of the endpoint's certificate, if that is the fleet's
	PID      int    `json:"pid"`            // of thaw up
}

// keyPair signs requests.
type keyPair struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
}

// Format hides the secret from every verb.
func (k keyPair) Format(f fmt.State, _ rune) { fmt.Fprint(f, "key "+k.ID) }

// fleetToken gives the token of the fleet, and makes it if there is none. Of
// several who do so at once, one does.
func (g *Globals) fleetToken() (string, error) {
	if err := os.MkdirAll(g.fleetPath(), 0o700); err != nil {
		return "", err
	}
	path := g.fleetPath("token")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		var raw [32]byte
		rand.Read(raw[:]) // never fails
		temp := path + "." + rand.Text()
		if err := os.WriteFile(temp, []byte(hex.EncodeToString(raw[:])+"\n"), 0o600); err != nil {
			return "", err
		}
		err = os.Link(temp, path)
		_ = os.Remove(temp)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if raw, err := hex.DecodeString(token); err != nil || len(raw) != 32 || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s is not a token that only its owner may read: remove it while nothing of the platform runs", path)
	}
	return token, nil
}

// noPlatform is errNoPlatform, and what to do.
func (g *Globals) noPlatform() error {
	m := g.membership()
	if m.Cluster == "" {
		return notStarted()
	}
	api := ""
	if m.API != "" {
		api = ", or its Lambda API at https://" + m.API
	}
	return fmt.Errorf("%w: this machine has joined the fleet of %s: ask on that machine%s", errNoPlatform, m.at(), api)
}

// fleet reads how the platform is reached.
func (g *Globals) fleet() (r fleetRecord, err error) {
	err = readJSON(g.fleetPath(platformFile), &r)
	if errors.Is(err, fs.ErrNotExist) {
		return r, g.noPlatform()
	}
	if err == nil && unix.Kill(r.PID, 0) == unix.ESRCH {
		return r, g.noPlatform() // it was killed
	}
	return r, err
}

// account is the one that is asked for, or else the platform's own: of a machine
// where only roles of another one's run, the usual one.
func (g *Globals) account(asked string) string {
	r, _ := g.fleet() // what cannot do without says so
	return cmp.Or(asked, r.Account, usualAccount)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON writes a record of root's alone, whole or not at all.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return keep(path, append(data, '\n'))
}

// clusterURL is that of the flag, or of the platform that runs, or of the fleet
// that this machine has joined.
func (f *fleetFlags) clusterURL(g *Globals) (string, error) {
	if f.Cluster != "" {
		return f.Cluster, nil
	}
	r, err := g.fleet()
	if url := g.membership().Cluster; errors.Is(err, errNoPlatform) && url != "" {
		return url, nil
	}
	return r.Cluster, err
}

// credentials gives the key pair of this machine's user.
func (g *Globals) credentials() (k keyPair, err error) {
	err = readJSON(g.fleetPath("credentials"), &k)
	if errors.Is(err, fs.ErrNotExist) {
		err = g.noPlatform()
	}
	return k, err
}

// platform is a way to the platform that runs, signed with this machine's keys.
type platform struct {
	fleetRecord
	functions *lambda.Client
	logs      *cloudwatchlogs.Client
}

// platform finds what runs.
func (g *Globals) platform() (*platform, error) {
	r, err := g.fleet()
	if err != nil {
		return nil, err
	}
	pair, err := g.credentials()
	if err != nil {
		return nil, err
	}
	keys := aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: pair.ID, SecretAccessKey: pair.Secret, Source: "thaw"}, nil
	})
	roots, err := g.fleetDir().Roots()
	if err != nil {
		return nil, err
	}
	client := sdkhttp.Client(func(t *http.Transport) { t.TLSClientConfig.RootCAs = roots })
	return &platform{
		fleetRecord: r,
		functions:   lambda.New(lambda.Options{Region: r.Region, BaseEndpoint: aws.String(r.Endpoint), Credentials: keys, HTTPClient: client}),
		logs:        cloudwatchlogs.New(cloudwatchlogs.Options{Region: r.Region, BaseEndpoint: aws.String(r.Endpoint), Credentials: keys, HTTPClient: client}),
	}, nil
}

// Run prints what sets a shell up.
func (c *envCmd) Run(g *Globals) error {
	r, err := g.fleet()
	if err != nil {
		return err
	}
	pair, err := g.credentials()
	if err != nil {
		return err
	}
	vars := [][2]string{
		{"AWS_ENDPOINT_URL", r.Endpoint}, // for clients that do not read the next two, which go before it
		{"AWS_ENDPOINT_URL_LAMBDA", r.Endpoint}, {"AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", r.Endpoint}, {"AWS_ACCESS_KEY_ID", pair.ID}, {"AWS_SECRET_ACCESS_KEY", pair.Secret},
		{"AWS_DEFAULT_REGION", r.Region}, {"AWS_REGION", r.Region}, {"AWS_SESSION_TOKEN", ""}, {"AWS_PROFILE", ""},
	}
	if r.CA != "" {
		vars = append(vars, [2]string{"AWS_CA_BUNDLE", r.CA})
	}
	if c.JSON {
		all := map[string]string{}
		for _, v := range vars {
			if v[1] != "" {
				all[v[0]] = v[1]
			}
		}
		return json.NewEncoder(g.stdout).Encode(all)
	}
	for _, v := range vars {
		if v[1] == "" {
			fmt.Fprintln(g.stdout, "unset "+v[0]) // another platform's
			continue
		}
		fmt.Fprintln(g.stdout, "export "+v[0]+"="+shellQuote(v[1]))
	}
	return nil
}

// shellQuote makes any text one word of a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
