//go:build cloud

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
	"golang.org/x/term"

	"thaw/text"
)

const (
	// deployLook is how often a deployment is looked at: more often than a
	// conversion tells of itself.
	deployLook = 500 * time.Millisecond
	// maxZip bounds a zip file in bytes, as Lambda does for those in requests.
	maxZip = 50 << 20
)

// plain makes an error of the platform one line: its type and message.
func plain(err error) error {
	if e := smithy.APIError(nil); errors.As(err, &e) {
		return fmt.Errorf("%s: %s", e.ErrorCode(), e.ErrorMessage())
	}
	return err
}

// Run makes or updates the function.
func (c *deployCmd) Run(ctx context.Context, g *Globals) error {
	p, err := g.platform()
	if err != nil {
		return err
	}
	code, err := c.code()
	if err != nil {
		return err
	}
	_, err = p.functions.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: &c.Name})
	if missing := (*types.ResourceNotFoundException)(nil); errors.As(err, &missing) {
		err = c.create(ctx, p, code)
	} else if err == nil {
		err = c.update(ctx, p, g, code)
	}
	if err != nil {
		return plain(err)
	}
	var now *types.FunctionConfiguration
	if !c.NoWait {
		if now, err = c.wait(ctx, p, g); err != nil {
			return err
		}
	}
	version := ""
	if c.Publish {
		out, err := p.functions.PublishVersion(ctx, &lambda.PublishVersionInput{FunctionName: &c.Name})
		if err != nil {
			return plain(err)
		}
		version = aws.ToString(out.Version)
	}
	return c.report(g, now, version)
}

// code reads what is to be deployed.
func (c *deployCmd) code() (code types.FunctionCode, err error) {
	if !strings.HasSuffix(c.Source, ".zip") {
		uri, err := absoluteSource(c.Source)
		code.ImageUri = &uri
		return code, err
	}
	f, err := os.Open(c.Source)
	if err != nil {
		return code, err
	}
	defer f.Close()
	if code.ZipFile, err = io.ReadAll(io.LimitReader(f, maxZip+1)); err == nil && len(code.ZipFile) > maxZip {
		err = fmt.Errorf("%s has more than %d MB: package it as an image, or give it by S3Bucket and S3Key (thaw up --s3)", c.Source, maxZip>>20)
	}
	return code, err
}

// absoluteSource makes a folder's path hold for another process.
func absoluteSource(source string) (string, error) {
	for _, scheme := range []string{"oci:", "oci-archive:", "docker-archive:"} {
		if path, ok := strings.CutPrefix(source, scheme); ok {
			path, err := filepath.Abs(path)
			return scheme + path, err
		}
	}
	return strings.TrimPrefix(source, "docker://"), nil
}

// create makes the function. Lambda wants a role: here none is assumed.
func (c *deployCmd) create(ctx context.Context, p *platform, code types.FunctionCode) error {
	in := &lambda.CreateFunctionInput{
		FunctionName: &c.Name, Role: aws.String("arn:aws:iam::" + p.Account + ":role/thaw"), Code: &code, Environment: c.environment(), ImageConfig: c.imageConfig(),
		MemorySize: c.Memory, Timeout: c.Timeout, EphemeralStorage: c.storage(), PackageType: types.PackageTypeImage,
		Description: given(c.Description),
	}
	if code.ZipFile != nil {
		in.PackageType, in.Runtime, in.Handler = types.PackageTypeZip, types.Runtime(c.Runtime), given(c.Handler)
	}
	_, err := p.functions.CreateFunction(ctx, in)
	return err
}

// update changes the configuration where flags ask for it, then the code.
func (c *deployCmd) update(ctx context.Context, p *platform, g *Globals, code types.FunctionCode) error {
	in := &lambda.UpdateFunctionConfigurationInput{
		FunctionName: &c.Name, MemorySize: c.Memory, Timeout: c.Timeout, Environment: c.environment(), ImageConfig: c.imageConfig(), EphemeralStorage: c.storage(),
		Handler: given(c.Handler), Runtime: types.Runtime(c.Runtime), Description: given(c.Description),
	}
	changes := in.MemorySize != nil || in.Timeout != nil || in.Environment != nil || in.ImageConfig != nil || in.EphemeralStorage != nil || in.Handler != nil || in.Runtime != "" || in.Description != nil
	if changes {
		if _, err := p.functions.UpdateFunctionConfiguration(ctx, in); err != nil {
			return err
		}
		// What was never built fails again with the code that is to be replaced.
		if _, err := c.wait(ctx, p, g); err != nil && !errors.As(err, new(notBuilt)) {
			return err
		}
	}
	_, err := p.functions.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: &c.Name, ImageUri: code.ImageUri, ZipFile: code.ZipFile})
	return err
}

func (c *deployCmd) environment() *types.Environment {
	if len(c.Env) == 0 {
		return nil
	}
	return &types.Environment{Variables: c.Env}
}

func (c *deployCmd) imageConfig() *types.ImageConfig {
	if len(c.Command) == 0 {
		return nil
	}
	return &types.ImageConfig{Command: c.Command}
}

func (c *deployCmd) storage() *types.EphemeralStorage {
	if c.Tmp == nil {
		return nil
	}
	return &types.EphemeralStorage{Size: c.Tmp}
}

// given leaves out what no flag says.
func given(flag string) *string {
	if flag == "" {
		return nil
	}
	return &flag
}

// notBuilt says why nothing can be made of what was deployed.
type notBuilt string

// Error gives the reason.
func (e notBuilt) Error() string { return string(e) }

// wait waits until the function can be invoked with what was deployed, or never
// will be, which is a notBuilt. On a terminal it says what goes on.
func (c *deployCmd) wait(ctx context.Context, p *platform, g *Globals) (*types.FunctionConfiguration, error) {
	f, ok := g.stderr.(*os.File)
	tty := ok && term.IsTerminal(int(f.Fd()))
	look := time.NewTicker(deployLook)
	defer look.Stop()
	for last := ""; ; {
		out, err := p.functions.GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: &c.Name})
		if err != nil {
			return nil, plain(err)
		}
		now := out.Configuration
		switch {
		case now.State == types.StateFailed:
			return nil, notBuilt(fmt.Sprintf("%s: %s (%s)", c.Name, aws.ToString(now.StateReason), now.StateReasonCode))
		case now.LastUpdateStatus == types.LastUpdateStatusFailed:
			return nil, notBuilt(fmt.Sprintf("%s: %s (%s); it is invoked as it was", c.Name, aws.ToString(now.LastUpdateStatusReason), now.LastUpdateStatusReasonCode))
		case now.State == types.StateActive && now.LastUpdateStatus != types.LastUpdateStatusInProgress:
			return now, nil
		}
		reason := aws.ToString(now.StateReason)
		if now.State == types.StateActive {
			reason = aws.ToString(now.LastUpdateStatusReason)
		}
		if tty && reason != last {
			fmt.Fprintln(g.stderr, text.Line(reason))
			last = reason
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (c *deployCmd) report(g *Globals, now *types.FunctionConfiguration, version string) error {
	if c.JSON {
		out := map[string]any{"name": c.Name}
		if now != nil {
			out["arn"], out["state"], out["code_sha256"], out["code_bytes"] = aws.ToString(now.FunctionArn), now.State, aws.ToString(now.CodeSha256), now.CodeSize
		}
		if version != "" {
			out["version"] = version
		}
		return json.NewEncoder(g.stdout).Encode(out)
	}
	state := "being made"
	if now != nil {
		state = "ready"
	}
	if version != "" {
		state += ", version " + version
	}
	_, err := fmt.Fprintf(g.stdout, "%s: %s: thaw invoke %s\n", c.Name, state, c.Name)
	return err
}

// Run lists functions.
func (c *functionsCmd) Run(ctx context.Context, g *Globals) error {
	p, err := g.platform()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(w, "NAME\tSTATE\tMEMORY\tTIMEOUT\tSIZE\tCHANGED")
	}
	pages := lambda.NewListFunctionsPaginator(p.functions, &lambda.ListFunctionsInput{})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return plain(err)
		}
		for _, f := range page.Functions {
			state, update := "Deleted", types.LastUpdateStatus("") // just now
			if f.State == types.StateFailed {                      // only that is listed, of what cannot be read
				state = "Failed: " + text.Line(aws.ToString(f.StateReason))
			} else if now, err := p.functions.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: f.FunctionName}); err == nil {
				state, update = string(now.State), now.LastUpdateStatus // lists leave them out
			}
			if c.JSON {
				err = json.NewEncoder(g.stdout).Encode(map[string]any{
					"name": aws.ToString(f.FunctionName), "state": state, "last_update_status": update, "memory_mb": aws.ToInt32(f.MemorySize), "timeout_s": aws.ToInt32(f.Timeout),
					"bytes": f.CodeSize, "changed": aws.ToString(f.LastModified), "arn": aws.ToString(f.FunctionArn),
				})
			} else {
				if state == string(types.StateActive) && update == types.LastUpdateStatusFailed {
					state += ", update failed"
				}
				_, err = fmt.Fprintf(w, "%s\t%s\t%d MB\t%d s\t%s\t%s\n", aws.ToString(f.FunctionName), state, aws.ToInt32(f.MemorySize), aws.ToInt32(f.Timeout), text.Bytes(f.CodeSize), aws.ToString(f.LastModified))
			}
			if err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

// Run deletes a function, or a version of one.
func (c *deleteCmd) Run(ctx context.Context, g *Globals) error {
	p, err := g.platform()
	if err != nil {
		return err
	}
	_, err = p.functions.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: &c.Name})
	return plain(err)
}
