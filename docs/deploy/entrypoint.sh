#!/bin/sh
# Runs suture in a container. Compose starts again whatever ends with another code than 0, whichever it is: so a code of
# SUTURE_FINAL, which trying again does not cure, is printed and becomes 0.
child= stopped=
trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child"' TERM INT
suture "$@" &
child=$!
[ -z "$stopped" ] || kill -TERM "$child" # it came before there was a child
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break # a signal ends the waiting, too
done
case " $SUTURE_FINAL " in
*" $code "*)
    echo "suture ended with code $code and is not started again; see above" >&2
    exit 0
    ;;
esac
exit "$code"
