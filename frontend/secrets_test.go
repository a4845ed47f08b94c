package frontend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/functions"
	"thaw/keys"
)

// Variables are sealed for one function, with its tenant's key, and remembered
// within bounds.
func TestSecrets(t *testing.T) {
	ctx := t.Context()
	s := newSecrets(testKeeper(t))
	f := functions.ID{Account: testAccount, Name: "f"}
	for _, vars := range []map[string]string{{}, {"A": "hush", "B": ""}} {
		sealed, err := s.seal(ctx, f, vars)
		if err != nil || strings.Contains(string(sealed), "hush") {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := s.open(ctx, f, sealed); err != nil || got == nil || !maps.Equal(got, vars) {
				t.Errorf("%v, %v", got, err)
			}
		}
		for _, other := range []functions.ID{{Account: testAccount, Name: "g"}, {Account: "111111111111", Name: "f"}} {
			if _, err := s.open(ctx, other, sealed); !errors.Is(err, keys.ErrRefused) {
				t.Errorf("opens for %s: %v", other, err)
			}
		}
	}
	if vars, err := s.open(ctx, f, nil); vars != nil || err != nil {
		t.Errorf("none are %v, %v", vars, err)
	}
	for range maxOpened {
		s.opened[fmt.Sprint(len(s.opened))] = map[string]string{}
	}
	sealed, err := s.seal(ctx, f, nil)
	if err == nil {
		_, err = s.open(ctx, f, sealed)
	}
	if err != nil || len(s.opened) > maxOpened+2 {
		t.Errorf("%d are at hand, %v", len(s.opened), err)
	}
	if _, err := newSecrets(nil).seal(ctx, f, nil); err == nil {
		t.Error("sealed without a key")
	}
}

// Where variables cannot be opened, AWS's clients are told so beside all else, and
// an invoke is refused.
func TestUnopened(t *testing.T) {
	d := newDoor(t)
	r := newRegion(t)
	in := imageInput("f")
	in.Environment = &types.Environment{Variables: map[string]string{"SECRET": "hush"}}
	c := r.client(testAccount)
	must(c.CreateFunction(t.Context(), in))
	r.build("f", ready)
	f, err := r.store.Update(t.Context(), functions.ID{Account: testAccount, Name: "f"}, func(f *functions.Function) error {
		if strings.Contains(string(f.Latest.Env), "hush") {
			t.Error("the record has it in clear")
		}
		f.Latest.Env[len(f.Latest.Env)-1] ^= 1
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := must(c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")}))
	if e := got.Environment; e == nil || e.Error == nil || aws.ToString(e.Error.ErrorCode) != "AccessDeniedException" || e.Variables != nil || !strings.Contains(*e.Error.Message, "does not open them") {
		t.Errorf("told %+v", e)
	}
	if list := must(c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{})); len(list.Functions) != 1 {
		t.Errorf("listed %+v", list.Functions)
	}
	if _, err := d.spec(context.Background(), f, &f.Latest); err == nil || !strings.Contains(err.Error(), "decrypt the environment variables") {
		t.Errorf("invoked: %v", err)
	}
}
