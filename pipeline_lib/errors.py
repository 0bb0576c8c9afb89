"""Every exception of the pipeline, one class for each different thing that a caller can do about it.

    PipelineError
    ├── SettingsError          a setting is missing or wrong: correct it
    ├── InstallError           something the machine must have is missing or differs: install it
    ├── ServiceError           a local service does not start or stop: read its log
    ├── UnavailableError       Kafka, PostgreSQL or the feed does not answer: wait, and try again   (retriable)
    ├── FeedError              the feed refuses us for good: a wrong key, no access
    ├── TapeError              a tape cannot be read
    ├── MessageError           a message breaks the contract of the topic: it becomes a dead letter
    ├── TopicError             the topic is not what the stored offsets were made from
    ├── SchemaError            the tables are not what this program creates
    ├── OffsetsMovedError      another writer has advanced the offsets: recompute the batch       (retriable)
    ├── QueryLostError         the query of Spark has ended, and a new one may do                 (retriable)
    ├── SparkLostError         the Java of Spark has ended, and a new process may do              (retriable)
    ├── ClockError             the clocks of this machine, PostgreSQL and Kafka are apart: set them
    └── AlreadyRunningError    another stream or service holds what this one needs

`retriable` is a fact of the class: code that tries again asks it, and nothing else. The text of each is one line: what
could not be done, a colon, what was found, and the way out.
"""

from __future__ import annotations


class PipelineError(Exception):
    """The base of all: catching it catches what this library can foresee."""

    retriable = False


class SettingsError(PipelineError):
    """A setting is missing, malformed, or contradicts another."""


class InstallError(PipelineError):
    """Java, a jar, a package or space on the disk is missing, or a jar has another checksum than the one on record."""


class ServiceError(PipelineError):
    """A service that we run on this machine could not be started or stopped."""


class UnavailableError(PipelineError):
    """A broker, a server or a feed does not answer for now."""

    retriable = True


class FeedError(PipelineError):
    """The feed refuses for good, until a person changes something."""


class TapeError(PipelineError):
    """A tape is missing, or is in no format that can be read."""


class MessageError(PipelineError):
    """A message breaks the contract of the topic. Its text is the reason kept with the dead letter."""


class TopicError(PipelineError):
    """The topic is absent, or is another one than the stored offsets belong to."""

    way_out = "make the tables anew of a tape (`stocks rebuild --tape FILE`), or name an empty database in DATABASE_URL"

    @classmethod
    def made_again(cls, topic: str, found_id: str, stored_id: str | None) -> TopicError:
        """Return the error of a topic that is another one of the same name."""
        return cls(
            f"cannot go on with topic {topic!r}: it has id {found_id}, the stored offsets belong to id {stored_id}: "
            f"it was deleted and made again; {cls.way_out}"
        )


class SchemaError(PipelineError):
    """The tables differ from the ones that this program creates, or belong to another topic or window."""


class OffsetsMovedError(PipelineError):
    """The stored offsets are not the ones that this batch was filtered by, so merging it would count twice."""

    retriable = True


class QueryLostError(PipelineError):
    """The query ended for a reason that is not known to be lasting, such as a checkpoint folder that went away."""

    retriable = True


class SparkLostError(PipelineError):
    """The Java process of Spark has died: this Python process cannot use Spark any more, and a new one can."""

    retriable = True


class ClockError(PipelineError):
    """Two clocks differ by more than the ages and the finality that are reckoned by them can bear."""


class AlreadyRunningError(PipelineError):
    """What this process needs for itself alone is held by another."""


# The exit status of a command whose error is retriable, so that whoever started it can try again: EX_TEMPFAIL of sysexits.h.
EXIT_TRY_AGAIN = 75
